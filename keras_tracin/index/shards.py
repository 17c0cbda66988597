"""The rows of an index, read from the disk as they are needed.

Synopsis:

    shards = Shards(Manifest.read(directory))
    shards.read(np.array([3, 700]))         # [2, width], float32
    for start, rows in shards.blocks():     # memory does not grow
        ...
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from keras_tracin.index.manifest import REMEDY, Manifest
from keras_tracin.storage.arrays import load_array


class Shards:
    """The arrays of all shards that a manifest lists.

    Args:
        manifest: list of the shards.
        sparing: whether to read scattered rows, which is slower than mapping
            them, so that memory does not grow with how many were read.
    """

    def __init__(self, manifest: Manifest, sparing: bool = False):
        self._manifest = manifest
        self._sparing = sparing
        self._mapped: dict[tuple[str, int], np.memmap] = {}

    @property
    def size(self) -> int:
        """Number of rows."""
        return self._manifest.count()

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.array("rows", 0).shape[1]

    def ids(self) -> np.ndarray:
        """The ids of all rows, in order."""
        shards = range(self._manifest.num_shards)
        return np.concatenate([self.array("ids", shard) for shard in shards])

    def read(self, positions: np.ndarray) -> np.ndarray:
        """The rows at some positions, `[len(positions), width]`, as float32.

        Args:
            positions: increasing row numbers.
        """
        counts = [entry["count"] for entry in self._manifest.entries]
        starts = np.cumsum([0, *counts])
        places = np.searchsorted(positions, starts)
        dtype = self.array("rows", 0).dtype
        rows = np.empty([len(positions), self.width], dtype)
        for shard in np.flatnonzero(np.diff(places)).tolist():
            part = slice(places[shard], places[shard + 1])
            self._read_from(shard, positions[part] - starts[shard], rows[part])
        return rows.astype(np.float32, copy=False)

    def _read_from(
        self, shard: int, places: np.ndarray, out: np.ndarray
    ) -> None:
        """Reads some rows of a shard into `out [len(places), width]`."""
        mapped = self.array("rows", shard)
        if not self._sparing or not hasattr(os, "preadv"):
            out[:] = mapped[places]
            return
        # A page of the map brings its neighbours, and after some thousand
        # scattered rows all of the file counts as this process's memory.
        path = self.path("rows", shard)
        with open(path, "rb", buffering=0) as file:
            for place, row in zip(places.tolist(), out, strict=True):
                at = mapped.offset + place * row.nbytes
                if os.preadv(file.fileno(), [row], at) != row.nbytes:
                    raise ValueError(
                        f"{path} is damaged: it ends before row {place}. "
                        f"{REMEDY}"
                    )

    def blocks(self, kind: str = "rows") -> Iterator[tuple[int, np.ndarray]]:
        """The first row number of each shard, and one of its arrays.

        One is read after another, and let go: memory does not grow.

        Args:
            kind: "rows", "ids" or "exact".
        """
        start = 0
        for shard in range(self._manifest.num_shards):
            path = self.path(kind, shard)
            block = load_array(path, REMEDY, mapped=True)
            yield start, block
            start += len(block)
            del block

    def has(self, kind: str) -> bool:
        """Whether shards have an array of this kind."""
        return kind in self._manifest.entries[0]["files"]

    def array(self, kind: str, shard: int) -> np.memmap:
        """One of a shard's arrays, mapped into memory."""
        if (kind, shard) not in self._mapped:
            path = self.path(kind, shard)
            array = load_array(path, REMEDY, mapped=True)
            self._mapped[kind, shard] = array
        return self._mapped[kind, shard]

    def path(self, kind: str, shard: int) -> Path:
        """The file of one of a shard's arrays."""
        return self._manifest.directory / kind / f"{shard:08d}.npy"

    def delete(self, kind: str, shard: int) -> None:
        """Deletes the file of one of a shard's arrays."""
        self._mapped.pop((kind, shard), None)
        self.path(kind, shard).unlink(missing_ok=True)
