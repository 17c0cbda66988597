"""The files of a run directory beside `run.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.runs import exact
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.storage import files
from keras_tracin.storage.arrays import save_arrays

_OWN_FILES = re.compile(
    rf"({files.UNFINISHED})?(step-\d{{8,}}\.(weights\.h5|exact\.npz)|\d{{8,}}\.npz)"
)


def save_weights(
    directory: Path, model: keras.Model, step: int, digest: str
) -> dict[str, Any]:
    """Writes a model's weights; returns what the manifest lists of them."""
    file = f"checkpoints/step-{step:08d}.weights.h5"
    with (
        files.written_whole(directory / file) as unfinished,
        files.error_keeping(unfinished) as open_file,
    ):
        exact.save_weights(model, open_file)
    entry = {
        "file": file,
        **files.describe(directory / file),
        "weights_digest": digest,
    }
    missing = exact.unheld_weights(model, directory / file)
    if missing:
        beside = exact.path_beside(Path(file))
        exact.write(directory / beside, model, missing)
        entry["exact"] = {
            "file": beside.as_posix(),
            **files.describe(directory / beside),
        }
    return entry


def save_steps(
    directory: Path, arrays: Mapping[str, np.ndarray], index: int
) -> dict[str, Any]:
    """Writes the arrays of a segment; returns what the manifest lists."""
    file = f"steps/{index:08d}.npz"
    save_arrays(directory / file, arrays)
    return {"file": file, **files.describe(directory / file)}


def remove_unlisted(directory: Path, manifest: Mapping[str, Any]) -> None:
    """Deletes what interrupted writes and dropped entries left behind."""
    listed = {"initial": {"file": None}, **manifest}
    kept = {entry["file"] for entry in run_manifest.listed_files(listed)}
    for folder in ("checkpoints", "steps"):
        for path in (directory / folder).glob("*"):
            listed_as = f"{folder}/{path.name}"
            if _OWN_FILES.fullmatch(path.name) and listed_as not in kept:
                path.unlink()
    unfinished = files.UNFINISHED + run_manifest.FILE_NAME
    (directory / unfinished).unlink(missing_ok=True)
