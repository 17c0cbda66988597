"""The files of a snapshot, and reading them into a model."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_tracin.models.kinds import (
    check_is_model,
    has_weights,
    marked_as_built,
)
from keras_tracin.runs import exact
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.storage import files

_REMEDY = (
    "Copy the run directory again, leave this checkpoint out, as in "
    "`kt.TrainingRun(directory)[1:]`, or train again into a new directory."
)

LOADING_ERRORS = (OSError, KeyError, ValueError, zipfile.BadZipFile)

RECORD_AGAIN = (
    "Record the run again with TracInCheckpoint, which keeps such weights in "
    "a file of their own."
)


@dataclass(frozen=True)
class SavedWeights:
    """A weights file, and what is known of the weights in it.

    Attributes:
        path: The file that Keras wrote.
        sha256: Its digest, if it was recorded.
        exact: The file with the weights that Keras's does not hold as they
            are, or None.
        exact_sha256: The digest of that file, if it was recorded.
        digests: Digests of the model's weights at that moment, as
            `manifest.weights_digest` makes them, any of which may be the
            right one; empty if they were not recorded.
        weights: Path, shape and dtype of each of the model's weights, if that
            was recorded.
    """

    path: Path
    sha256: str | None = None
    exact: Path | None = None
    exact_sha256: str | None = None
    digests: tuple[str, ...] = ()
    weights: tuple = ()


def listed_weights(
    directory: Path, manifest: Mapping[str, Any], entry: Mapping[str, Any]
) -> SavedWeights:
    """The saved weights of a snapshot that a manifest lists."""
    beside = entry.get("exact")
    return SavedWeights(
        path=directory / entry["file"],
        sha256=entry["sha256"],
        exact=directory / beside["file"] if beside else None,
        exact_sha256=beside["sha256"] if beside else None,
        digests=_digests(manifest, entry),
        weights=tuple(
            (name, tuple(shape), dtype)
            for name, shape, dtype in manifest["model"]["weights"]
        ),
    )


def _digests(
    manifest: Mapping[str, Any], entry: Mapping[str, Any]
) -> tuple[str, ...]:
    if "weights_digest" in entry:
        return (entry["weights_digest"],)
    # Runs of an earlier version have them in the segments only. Several may
    # end at a step: statistics can move while gradients accumulate.
    return tuple(
        segment["weights_digest"]
        for segment in manifest["segments"]
        if segment["last_step"] == entry["step"]
    )


def saved_at(path: Path) -> SavedWeights:
    """The saved weights in a file, of a run's snapshot or a file of its own."""
    entry = run_manifest.entry_of(path)
    if entry is not None:
        return listed_weights(path.parent.parent, *entry)
    beside = exact.path_beside(path)
    return SavedWeights(path, exact=beside if beside.is_file() else None)


def check_built(model: keras.Model) -> None:
    """Raises ValueError if a model has no weights yet.

    Raises:
        TypeError: if it is no model of Keras 3.
    """
    check_is_model(model, needs_call=False)
    if not has_weights(model):
        raise ValueError(
            f"The model {model.name!r} has no weights yet, expected a built "
            "one. Call it on a batch of data first."
        )


def check_saved(model: keras.Model, saved: SavedWeights) -> None:
    """Checks that a snapshot can be put into a model, without doing so.

    Raises:
        ValueError: A file is missing or damaged, or was written from a model
            whose weights have other shapes; or Keras has merged the model's
            LoRA in it. Of adopted files little is known: they only have to be
            there.
    """
    for path, sha256 in [
        (saved.path, saved.sha256),
        (saved.exact, saved.exact_sha256),
    ]:
        if path is not None and sha256 is not None:
            files.check_digest(path, sha256, _REMEDY)
        elif path is not None and not path.is_file():
            raise ValueError(f"{path} does not exist, expected a weights file.")
    if saved.weights:  # Else Keras compares the shapes as it loads.
        mismatch = run_manifest.first_mismatch(
            saved.weights, model, compare_dtypes=False
        )
        if mismatch:
            raise ValueError(
                f"The model {model.name!r} is not the one whose training wrote "
                f"{saved.path}: {mismatch}. Pass the model that was trained, "
                "or one built by the same code."
            )
    merged = exact.merging_layers(model)
    if merged and saved.exact is None:
        raise ValueError(
            f"{saved.path} holds other weights than training had. Received a "
            f"model with LoRA in the layers {_some(merged)}, and a file in "
            "which Keras has added their low-rank products to the kernels and "
            f"kept none of the factors. {RECORD_AGAIN}"
        )


def load_saved(
    model: keras.Model, saved: SavedWeights, read: Callable[[Path], None]
) -> None:
    """Gives a model the weights of a snapshot.

    Args:
        model: A built model.
        saved: Checked by `check_saved`.
        read: Has Keras read a weights file into the model.

    Raises:
        Exception: Whatever `read` raises.
        ValueError: The second file does not fit the model.
    """
    try:
        with marked_as_built(model):
            read(saved.path)
        error = None
    except LOADING_ERRORS as caught:
        if saved.exact is None:
            raise
        # Keras may not be able to load what a layer of one's own has saved.
        # All other weights have come in by then.
        error = caught
    if saved.exact is not None:
        exact.assign(model, saved.exact)
    if error is not None and not _is_known(model, saved):
        raise error


def _is_known(model: keras.Model, saved: SavedWeights) -> bool:
    """Whether a model has exactly the weights that were recorded."""
    return run_manifest.weights_digest(model) in saved.digests


def check_loaded(model: keras.Model, saved: SavedWeights) -> None:
    """Checks that a model has the weights that it had when they were saved.

    Raises:
        ValueError: It has others, because Keras does not save them as they
            are and no file beside its own has them.
    """
    received = [str(weight.dtype) for weight in model.weights]
    if not saved.digests or received != [w[2] for w in saved.weights]:
        return  # There is nothing to compare with.
    if _is_known(model, saved):
        return
    unusual = exact.unusual_layers(model)
    reason = (
        f"The layers {_some(unusual)} save or load their weights by code of "
        "their own, which changes some or leaves them out."
        if unusual
        else "Keras has left out or changed some of them."
    )
    raise ValueError(
        f"{saved.path} does not hold the weights that the run recorded: what "
        f"the model has after loading it differs. {reason} {RECORD_AGAIN}"
    )


def restore(model: keras.Model, saved: SavedWeights) -> None:
    """Puts a model into the state in which it was saved, to train on.

    That is all its weights, and the states of its optimizer and metrics as
    `model.load_weights` gives them. After an exception, the model is as it
    was.

    Raises:
        ValueError: The model is not built; or as `check_saved` and
            `check_loaded`.
    """
    check_built(model)
    check_saved(model, saved)
    _build_optimizer(model, saved.path)
    variables = list(model.variables)
    if getattr(model, "optimizer", None) is not None:
        variables += model.optimizer.variables
    before = [(v, keras.ops.convert_to_numpy(v)) for v in variables]
    try:
        load_saved(model, saved, model.load_weights)
        check_loaded(model, saved)
    except BaseException:
        for variable, value in before:
            variable.assign(value)
        exact.refresh(model)
        raise


def _build_optimizer(model: keras.Model, path: Path) -> None:
    """Makes an optimizer's variables, where the file has values for them.

    A compiled model makes them at its first step, and Keras puts nothing into
    an optimizer without them.
    """
    optimizer: Any = getattr(model, "optimizer", None)
    if optimizer is None or optimizer.built or path.suffix != ".h5":
        return
    with h5py.File(path) as file:
        recorded = len(file.get("optimizer/vars", {}))
    if recorded > len(optimizer.variables):
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:3])
    rest = len(names) - 3
    return shown + (f" and {rest} more" if rest > 0 else "")
