"""Reading the files that results were saved to."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from keras_tracin.storage.arrays import load_arrays


def load_saved(
    path: str | os.PathLike, names: Iterable[str]
) -> dict[str, np.ndarray]:
    """The arrays that a result's `save` wrote, by name.

    Raises:
        ValueError: if the file holds something else.
    """
    return load_arrays(path, "Expected a file that `save` wrote.", names)
