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

_BLOCK = 2**24  # numbers of the rows that are read at a time


def restored(rows: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """Rows as float32, times their scales if they have any."""
    rows = rows.astype(np.float32, copy=False)
    return rows if scales is None else rows * scales[:, np.newaxis]


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
        scales = np.empty(len(positions), np.float32)
        for shard in np.flatnonzero(np.diff(places)).tolist():
            part = slice(places[shard], places[shard + 1])
            own = positions[part] - starts[shard]
            self._read_from(shard, own, rows[part])
            if self._scaled:
                scales[part] = self.array("scales", shard)[own]
        return restored(rows, scales if self._scaled else None)

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
        """Some rows of one of the arrays after others, with the first's number.

        They are read one after another, and let go: memory does not grow.
        Those of all kinds are cut in the same places.

        Args:
            kind: "rows", "ids", "exact" or another; rows that have scales are
                restored.
        """
        start = 0
        size = max(1, _BLOCK // self.width)
        scaled = kind == "rows" and self._scaled
        for shard in range(self._manifest.num_shards):
            whole = load_array(self.path(kind, shard), REMEDY, mapped=True)
            scales = self.array("scales", shard) if scaled else None
            for first in range(0, len(whole), size):
                block = whole[first : first + size]
                if scales is not None:
                    block = restored(block, scales[first : first + size])
                yield start + first, block
                del block
            start += len(whole)
            del whole

    @property
    def _scaled(self) -> bool:
        """Whether each row has a scale."""
        return self.has("scales")

    def has(self, kind: str) -> bool:
        """Whether all shards have an array of this kind."""
        entries = self._manifest.entries
        return all(kind in entry["files"] for entry in entries)

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
