"""The finished matrix of a call's scores, in a file that is mapped into memory.

    scores.npy   the matrix
    ids.npz      ids of its queries and training examples
    matrix.json  digests of the parts it was made of, and of scores.npy

The last is written last: where it is, the others are whole.

Synopsis:

    matrix = ScoreMatrix(directory)
    if not matrix.is_finished:
        matrix.write((100, 60_000), dtype, pieces, query_ids, train_ids,
                     part_digests)
    matrix.read(query_ids, part_names)   # {"scores": [m, n], ...}
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np

from keras_tracin.storage.arrays import load_array, load_arrays, save_arrays
from keras_tracin.storage.files import (
    check_digest,
    check_room,
    describe,
    written_whole,
)
from keras_tracin.storage.sharing import read_shared, write_first

_SCORES = "scores.npy"
_REMEDY = "Delete its directory and call again."


class ScoreMatrix:
    """The matrix of scores of one call.

    Args:
        directory: directory that holds it, and the call's parts before.

    Attributes:
        last_file: the file that is written last.
    """

    def __init__(self, directory: Path):
        self._directory = directory
        self._scores = directory / _SCORES
        self._ids = directory / "ids.npz"
        self.last_file = directory / "matrix.json"
        self._is_checked = False  # its content is that of the digest

    @property
    def is_finished(self) -> bool:
        """Whether all its files are written."""
        return self.last_file.is_file()

    @functools.cached_property
    def part_digests(self) -> dict[str, str]:
        """The digests of the parts that it was made of, by their names."""
        return {k: v for k, v in self._digests.items() if k != _SCORES}

    @functools.cached_property
    def _digests(self) -> dict[str, str]:
        return read_shared(self.last_file)

    def write(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        pieces: Iterable[tuple[slice, slice, np.ndarray]],
        query_ids: np.ndarray,
        train_ids: np.ndarray,
        part_digests: Mapping[str, str],
    ) -> None:
        """Writes the matrix, whole or not at all.

        Args:
            shape: `(m, n)`, and more axes where the pieces have them.
            dtype: the type of its numbers.
            pieces: rows, columns, and what belongs there.
            query_ids: `[m]`.
            train_ids: `[n]`.
            part_digests: digests of the parts that pieces come from, by name.

        Raises:
            OSError: if the disk has no room for it.
        """
        # One that came without its ids, or the room would be needed twice.
        self._scores.unlink(missing_ok=True)
        check_room(
            self._directory,
            math.prod(shape) * dtype.itemsize,
            "matrix of scores",
            "All its parts are kept. Make room and call again, or use `top_k`, "
            "which makes no matrix, in another directory",
        )
        with written_whole(self._scores) as unfinished:
            matrix = np.lib.format.open_memmap(unfinished, "w+", dtype, shape)
            _allocate(unfinished)
            for rows, columns, piece in pieces:
                matrix[rows, columns] = piece
            matrix.flush()
        save_arrays(self._ids, {"query_ids": query_ids, "train_ids": train_ids})
        digests = {**part_digests, _SCORES: describe(self._scores)["sha256"]}
        write_first(self.last_file, json.dumps(digests, indent=1))
        self._is_checked = True

    def read(
        self, query_ids: np.ndarray, part_names: Collection[str]
    ) -> dict[str, np.ndarray]:
        """The matrix, mapped into memory, and the ids that it is of.

        Args:
            query_ids: ids of the queries it should be of, `[m]`.
            part_names: names of the parts it should be made of.

        Returns:
            `scores`, `query_ids` and `train_ids`.

        Raises:
            ValueError: if it is damaged, or of other queries or parts.
        """
        for needed in (self._scores, self._ids):
            if not needed.is_file():
                raise ValueError(
                    f"{needed} is missing, though its scores were finished. "
                    f"{_REMEDY}"
                )
        ids = load_arrays(self._ids, _REMEDY)
        if set(part_names) != self.part_digests.keys() or not np.array_equal(
            ids["query_ids"], query_ids
        ):
            raise ValueError(
                f"The scores in {self._directory} were made from other queries "
                "or training examples: they are "
                f"{len(ids['query_ids']):,} × {len(ids['train_ids']):,}, of "
                f"{len(self.part_digests)} parts; received "
                f"{len(query_ids):,} queries, and training examples in "
                f"{len(part_names)} parts. Choose another directory."
            )
        # Earlier versions wrote no digest of it.
        if not self._is_checked and _SCORES in self._digests:
            check_digest(self._scores, self._digests[_SCORES], _REMEDY)
        return {"scores": load_array(self._scores, _REMEDY, mapped=True), **ids}


def _allocate(path: Path) -> None:
    """Has the disk set all of a file's bytes aside.

    A mapped file that the disk turns out to have no room for ends the process.
    """
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
