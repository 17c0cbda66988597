"""Rows on disk: shards that are whole or absent, and a file that lists them.

    index/digits/
      index.json             this module
      rows/00000000.npy      [n, dim], float32 or float16
      ids/00000000.npy       [n]

`index.json` lists each shard after both its files have reached the disk, with
size and SHA-256, and a digest of the examples it was made from. A crash loses
the shard in the making and no other.

Synopsis:

    store = Store.open_or_create(directory, identity, resume=True)
    store.append(rows, ids, digest)
    store.finish()
    Store(directory).rows(0)          # [n, dim], mapped from the disk
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin import _files

FORMAT_VERSION = 1
FILE_NAME = "index.json"

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REMEDY = "Copy the index again, or delete it and build it anew."


class Store:
    """The rows of an index, and what they were made with.

    Args:
        directory: that of an index.

    Attributes:
        identity: what has to be the same for rows to go together.

    Raises:
        ValueError: if there is no index, or one that cannot be read.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._manifest = _read(directory / FILE_NAME)
        self.identity: dict[str, Any] = self._manifest["identity"]

    @classmethod
    def open_or_create(
        cls, directory: Path, identity: dict[str, Any], resume: bool
    ) -> Store:
        """The store to continue, or a new one.

        Raises:
            ValueError: if there is one already and `resume` is False, or it
                was made with something else.
        """
        if not (directory / FILE_NAME).is_file():
            first = {
                "format_version": FORMAT_VERSION,
                "complete": False,
                "identity": identity,
                "shards": [],
            }
            _write(directory, first)
            return cls(directory)
        if not resume:
            raise ValueError(
                f"{directory} holds an index already. Pass `resume=True` to "
                "continue it, or choose another directory."
            )
        store = cls(directory)
        for name, expected in store.identity.items():
            if name == "files":  # a run may have been moved
                continue
            # Read back, so that both have JSON's types.
            received = json.loads(json.dumps(identity[name]))
            if received != expected:
                raise ValueError(
                    f"The index in {directory} was built with another "
                    f"{name}: it has {expected}, received {received}. Use "
                    "what it was built with, or choose another directory."
                )
        return store

    @property
    def complete(self) -> bool:
        """Whether all examples of a build have their rows."""
        return self._manifest["complete"]

    @property
    def num_shards(self) -> int:
        """How many shards are listed."""
        return len(self._manifest["shards"])

    @property
    def size(self) -> int:
        """How many rows are listed."""
        return sum(shard["count"] for shard in self._manifest["shards"])

    def rows(self, shard: int) -> np.ndarray:
        """Rows `[n, dim]` of a shard, read from the disk as needed."""
        path = self._path("rows", shard)
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def ids(self) -> np.ndarray:
        """The ids of all rows, in order."""
        paths = [self._path("ids", shard) for shard in range(self.num_shards)]
        return np.concatenate([np.load(p, allow_pickle=False) for p in paths])

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each shard's first row number and rows."""
        start = 0
        for shard in range(self.num_shards):
            rows = self.rows(shard)
            yield start, rows
            start += len(rows)

    def holds(self, shard: int, ids: np.ndarray, digest: str) -> None:
        """Checks that a shard was made from these examples.

        Raises:
            ValueError: if it was not.
        """
        found = np.load(self._path("ids", shard), allow_pickle=False)
        entry = self._manifest["shards"][shard]
        if not np.array_equal(found, ids) or entry["examples"] != digest:
            raise ValueError(
                f"The index in {self.directory} was begun on other training "
                f"examples: shard {shard} has ids from {found[0]!r} to "
                f"{found[-1]!r}, received {ids[0]!r} to {ids[-1]!r}, or their "
                "content has changed. Give the examples it was begun with, "
                "in the same order, or choose another directory."
            )

    def append(self, rows: np.ndarray, ids: np.ndarray, digest: str) -> None:
        """Writes a shard, then lists it.

        Raises:
            OSError: if the disk is full; what is listed stays as it is.
        """
        shard = self.num_shards
        try:
            entry: dict[str, Any] = {"count": len(ids), "examples": digest}
            for kind, array in (("rows", rows), ("ids", ids)):
                path = self._path(kind, shard)
                _save(path, array)
                entry[kind] = _files.describe(path)
            listed = {**self._manifest, "complete": False}
            listed["shards"] = [*self._manifest["shards"], entry]
            _write(self.directory, listed)
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise OSError(
                error.errno,
                f"The disk is full: {rows.nbytes:,} bytes for shard {shard} "
                f"of the index in {self.directory} did not fit. {shard} "
                f"shards with {self.size:,} rows are kept. Free space and "
                "build again with `resume=True`",
            ) from error
        self._manifest = listed

    def finish(self) -> None:
        """Says that all rows are there."""
        listed = {**self._manifest, "complete": True}
        _write(self.directory, listed)
        self._manifest = listed

    def verify(self) -> None:
        """Compares every file with its checksum.

        Raises:
            ValueError: naming the first that is missing or damaged.
        """
        for shard, entry in enumerate(self._manifest["shards"]):
            for kind in ("rows", "ids"):
                path = self._path(kind, shard)
                found = _files.describe(path) if path.is_file() else None
                if found != entry[kind]:
                    what = "is missing" if found is None else "is damaged"
                    raise ValueError(
                        f"{path} {what}: received {found}, expected "
                        f"{entry[kind]}. {_REMEDY}"
                    )

    def _path(self, kind: str, shard: int) -> Path:
        return self.directory / kind / f"{shard:08d}.npy"


def _save(path: Path, array: np.ndarray) -> None:
    with (
        _files.written_whole(path) as unfinished,
        open(unfinished, "wb") as file,
    ):
        np.save(file, array, allow_pickle=False)


def _write(directory: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=2)
    with _files.written_whole(directory / FILE_NAME) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"Expected the directory of an index, but {path} does not exist. "
            "Build one with `InfluenceIndex.build(method, directory)`."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format_version"]
        identity, shards = manifest["identity"], manifest["shards"]
        known = isinstance(identity, dict) and isinstance(shards, list)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. {_REMEDY}") from error
    if version != FORMAT_VERSION or not known:
        raise ValueError(
            f"{path} has format version {version!r}, but this version of "
            f"keras_tracin reads {FORMAT_VERSION}. Update keras_tracin, or "
            "build the index anew."
        )
    return manifest
