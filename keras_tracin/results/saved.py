"""Writing and reading the files that results are saved to.

Synopsis:

    save_fields(result, "result.npz")
    arrays = load_saved("result.npz", ["ids", "scores"])
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.storage.arrays import load_arrays, save_arrays


def save_fields(
    result: Any, path: str | os.PathLike, **instead: np.ndarray
) -> None:
    """Writes the fields of a result that are not None, as one `.npz` file.

    It appears whole or not at all.

    Args:
        result: a dataclass.
        path: the file.
        **instead: arrays in place of fields that are None.
    """
    arrays = {
        field.name: np.asarray(value)
        for field in dataclasses.fields(result)
        if (value := getattr(result, field.name)) is not None
    }
    save_arrays(Path(path), {**instead, **arrays})


def load_saved(
    path: str | os.PathLike,
    names: Iterable[str],
    optional: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """The arrays that a result's `save` wrote, by name.

    Args:
        path: the file.
        names: the names of the arrays.
        optional: names of arrays that the file may lack.

    Raises:
        ValueError: if the file holds something else.
    """
    remedy = "Expected a file that `save` wrote."
    if optional:
        present = load_arrays(path, remedy)
        names = [*names, *(name for name in optional if name in present)]
    return load_arrays(path, remedy, names)
