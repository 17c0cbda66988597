"""A matrix of scores in a file, written piece by piece.

Synopsis:

    write_matrix(path, (100, 60_000), np.float32, pieces)
    scores = np.load(path, mmap_mode="r", allow_pickle=False)
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from keras_tracin.storage.files import written_whole


def write_matrix(
    path: Path,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    pieces: Iterable[tuple[slice, slice, np.ndarray]],
) -> None:
    """Writes a matrix to a file, whole or not at all.

    Args:
        path: the file.
        shape: `(rows, columns)`, and more axes where the pieces have them.
        dtype: the type of its numbers.
        pieces: rows, columns, and what belongs there.

    Raises:
        OSError: if the disk has no room for it.
    """
    with written_whole(path) as unfinished:
        matrix = np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
        _allocate(unfinished)
        for rows, columns, piece in pieces:
            matrix[rows, columns] = piece
        matrix.flush()


def _allocate(path: Path) -> None:
    """Has the disk set all of a file's bytes aside.

    A mapped file that the disk turns out to have no room for ends the process.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
