"""Reading the files that results were saved to."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from keras_tracin.storage.arrays import load_arrays


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
