"""The file `run.json`: what a run directory holds, and of which model.

    runs/digits/
      run.json                                  this module
      checkpoints/step-00000000.weights.h5      the weights training began with
      checkpoints/step-00000120.weights.h5      Keras weight files
      checkpoints/step-00000120.exact.npz       weights that Keras's file does
                                                not hold as they are, if any
      steps/00000000.npz                        arrays with one row per step
      recording.lock                            while a training is recorded
      earlier-1/                                a run of its own: what led to
                                                the model no longer, if any

`run.json` lists every other file with its size and SHA-256 and is replaced
only after the files it lists are on the disk. Its parts:

    format_version   2
    model            class, and [path, shape, dtype] of each of model.weights
    initial          the snapshot before the first step; the states of random
                     numbers there (seeds), where they were recorded
    checkpoints      the snapshots: step, epoch, logs, weights_digest
    segments         spans of steps: first_step, last_step, epoch, epoch_end,
                     logs (at epoch ends), weights_digest (after last_step),
                     updated: which entries of `updated` its steps updated,
                     weighted: whether batches had weights of the examples;
                     added_losses: layers that added losses in training;
                     beside: [where, digest] of variables that are not among
                     model.weights, as they were after last_step
    updated          sets of variables, as positions in model.weights

A step is an update that the optimizer applied. Steps and epochs count from 1
over all of the run, whatever Keras counted. The arrays of a segment are named;
`learning_rate` is one of them, and readers leave alone those they do not know.
Where the steps of a segment updated several sets of variables, `rates` has a
column for each of them, 0 in steps that did not update it; `learning_rate` is
the largest of a step. Version 1 had no `updated`: what was updated is unknown.
It had no second files (`exact`) either, and did not keep LoRA as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.storage import files
from keras_tracin.storage.arrays import load_arrays

FORMAT_VERSION = 2
FILE_NAME = "run.json"

# The files that `keras.callbacks.ModelCheckpoint` of Keras 3 writes.
READABLE = (".weights.h5", ".keras")
CONVERT = (
    "Weights that Keras 2 wrote need another form: `model.load_weights(old)` "
    "reads an .h5 file, and for a TensorFlow checkpoint "
    "`model.set_weights(old_model.get_weights())` takes over what `tf_keras` "
    "has read; then `model.save_weights('epoch-01.weights.h5')`, a file for "
    "each epoch."
)
REMEDY = "Copy the run directory again, or train again into a new one."

_PARTS = {"model": dict, "initial": dict, "checkpoints": list, "segments": list}


def exists(directory: Path) -> bool:
    """Whether the directory holds a run."""
    return (directory / FILE_NAME).is_file()


def read(directory: Path) -> dict[str, Any]:
    """The manifest of a run whose files are all there with the right sizes.

    Raises:
        ValueError: There is no run, or one that this version cannot read, or
            a file of it is missing or has another size than listed.
    """
    path = directory / FILE_NAME
    if not path.is_file():
        raise no_run(directory)
    manifest = _parse(path)
    for entry in listed_files(manifest):
        files.check_size(directory / entry["file"], entry["size"], REMEDY)
    return manifest


def no_run(place: Path) -> ValueError:
    """The error for one who named a place where there is no run.

    Args:
        place: a directory or a file.
    """
    if place.is_file():
        what, files = "is a file", [place]
    elif place.is_dir():
        what, files = "has no run.json", sorted(place.iterdir())
    else:
        what, files = "does not exist", []
    names = [file.name for file in files]
    if any(name.endswith(READABLE) for name in names):
        remedy = (
            "For weights that `keras.callbacks.ModelCheckpoint` wrote, pass "
            "`TrainingRun.from_weights(files, learning_rates)`, the files in "
            "the order of training."
        )
    elif any(name.endswith((".h5", ".hdf5", ".index")) for name in names):
        remedy = (
            f"{CONVERT} Then pass `TrainingRun.from_weights(files, rates)`."
        )
    elif place.is_file():
        return ValueError(
            f"{place} is a file; expected a directory into which "
            "TracInCheckpoint has recorded a run."
        )
    else:
        remedy = (
            "Record a run with model.fit(..., "
            f"callbacks=[TracInCheckpoint({str(place)!r})])."
        )
    return ValueError(
        f"Expected the directory of a training run, but {place} {what}. "
        f"{remedy}"
    )


def _parse(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged, it is not valid JSON: {error}. Copy the run "
            "directory again, or train again into a new one."
        ) from error
    version = manifest.get("format_version") if type(manifest) is dict else None
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, but this version of "
            f"keras_tracin reads up to {FORMAT_VERSION}. Update keras_tracin."
        )
    bad = [
        name
        for name, kind in {"format_version": int, **_PARTS}.items()
        if version is None or not isinstance(manifest.get(name), kind)
    ]
    if not bad and not all(map(_lists_a_file, listed_files(manifest))):
        bad = ["the size or checksum of a file"]
    if bad:
        raise ValueError(
            f"{path} is not the manifest of a run: {', '.join(bad)} missing or "
            "of another type. Copy the run directory again, or train again "
            "into a new one."
        )
    return manifest


def _lists_a_file(entry: Any) -> bool:
    return type(entry) is dict and entry.keys() >= {"file", "size", "sha256"}


def write(directory: Path, manifest: dict[str, Any]) -> str:
    """Replaces the manifest. What it lists must be on the disk already.

    Returns:
        The text of the file.
    """
    text = json.dumps(manifest, indent=2)
    with files.written_whole(directory / FILE_NAME) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    return text + "\n"


def listed_files(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Everything in the manifest that has `file`, `size` and `sha256`."""
    snapshots = [manifest["initial"], *manifest["checkpoints"]]
    return [
        *snapshots,
        *(e["exact"] for e in snapshots if type(e) is dict and "exact" in e),
        *manifest["segments"],
    ]


def states(manifest: Mapping[str, Any]) -> list[tuple[int, str | None]]:
    """The steps after which the weights are known, and their digests.

    The first is that before training, the others are the ends of the segments.
    """
    return [
        (state.get("last_step", 0), state.get("weights_digest"))
        for state in [manifest["initial"], *manifest["segments"]]
    ]


def entry_of(
    weights_file: Path,
) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The manifest that lists a weights file, and its entry there.

    Returns:
        None if the file is not in the directory of a run, or not listed.

    Raises:
        ValueError: The manifest there is damaged, or of a newer version.
    """
    directory = weights_file.parent.parent
    if not exists(directory):
        return None
    manifest = _parse(directory / FILE_NAME)
    name = f"{weights_file.parent.name}/{weights_file.name}"
    for entry in [manifest["initial"], *manifest["checkpoints"]]:
        if entry["file"] == name:
            return manifest, entry
    return None


def read_arrays(
    directory: Path, entry: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays of a segment.

    Raises:
        ValueError: if the file is missing or damaged.
    """
    path = directory / entry["file"]
    files.check_digest(path, entry["sha256"], REMEDY)
    return load_arrays(path, REMEDY)


def architecture(model: keras.Model) -> dict[str, Any]:
    """The `model` part of the manifest."""
    weights = [[w.path, list(w.shape), str(w.dtype)] for w in model.weights]
    return {"class": type(model).__name__, "weights": weights}


def first_mismatch(
    recorded: Sequence, model: keras.Model, compare_dtypes: bool = True
) -> str | None:
    """How a model's weights differ from `architecture(...)["weights"]`.

    Keras numbers layers anew in each process, so names may differ. Only where
    both have the same names, these have to be in the same order: values are
    put into a model by position.

    Returns:
        What was received and what was expected, or None if they are alike.
    """
    received = architecture(model)["weights"]
    if len(received) != len(recorded):
        return (
            f"received a model with {len(received)} weights, expected "
            f"{len(recorded)}"
        )
    for new, old in zip(received, recorded, strict=True):
        (name, shape, dtype), (old_name, old_shape, old_dtype) = new, old
        same_shape = list(shape) == list(old_shape)
        if not same_shape or (compare_dtypes and dtype != old_dtype):
            return (
                f"received {name} with shape {tuple(shape)} and dtype {dtype}, "
                f"expected {old_name} with shape {tuple(old_shape)} and dtype "
                f"{old_dtype}"
            )
    return _first_moved(received, recorded)


def _first_moved(received: Sequence, recorded: Sequence) -> str | None:
    """Which weight has another place, if both have the same names."""
    for depth in (0, 2):  # by the whole path; by the layer and its variable
        names, old_names = (
            ["/".join(path.split("/")[-depth:]) for path, *_ in weights]
            for weights in (received, recorded)
        )
        if len(set(names)) < len(names) or set(names) != set(old_names):
            continue
        for place, (name, old) in enumerate(zip(names, old_names, strict=True)):
            if name != old:
                return (
                    f"received a model whose weight {place} is {name}, "
                    f"expected {old}, which it has in another place"
                )
    return None


def weights_digest(model: keras.Model) -> str:
    """A digest of the values in `model.weights`."""
    digest = hashlib.blake2b(digest_size=16)
    for weight in model.weights:
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(weight))
        digest.update(array.reshape(-1).view(np.uint8).data)  # no copy
    return digest.hexdigest()
