"""Rows on disk: shards that are whole or absent, and a file that lists them.

    index/digits/
      index.json             the list, see `keras_tracin.index.manifest`
      rows/00000000.npy      [n, width], float32, float16 or int8
      scales/00000000.npy    [n], of rows in int8
      ids/00000000.npy       [n]
      exact/00000000.npy     [n, queries], where recall is measured
      unrounded/00000000.npy [n, queries], where rows are rounded
      search/00000003.*      the search of the first 3 shards

A crash loses the shard in the making and no other. Shards count once the
build, or the `append`, that they belong to is finished: until then readers do
not see them.

Any process may put a shard: its entry for the list is then a file of its own,
`entries/00000003.json`, and only the first process changes the list.

Synopsis:

    store = Store.open_or_create(directory, identity, resume=True)
    store.put(0, {"rows": rows, "ids": ids}, digest)
    store.take(0, digest)
    store.finish({"kind": "exact", "files": {}})
    Store(directory).shards.read(positions)     # [n, width], from the disk
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.index.manifest import (
    FILE_NAME,
    REMEDY,
    Manifest,
    wait_for_index,
    write_json,
)
from keras_tracin.index.shards import Shards
from keras_tracin.storage import files
from keras_tracin.storage.arrays import write_array


class Store:
    """The files of an index.

    Args:
        directory: directory of an index.
        sparing: as in `Shards`.
        only_finished: whether to leave out shards that do not count yet.

    Attributes:
        directory: directory of the index.
        manifest: list of its files.
        shards: its rows.

    Raises:
        ValueError: if there is no index, or one that cannot be read.
    """

    def __init__(
        self,
        directory: Path,
        sparing: bool = False,
        only_finished: bool = False,
    ):
        self.directory = directory
        self.manifest = Manifest.read(directory)
        if only_finished:
            self.manifest.leave_out_pending()
        self.shards = Shards(self.manifest, sparing)

    @classmethod
    def open_or_create(
        cls,
        directory: Path,
        identity: dict[str, Any],
        resume: bool,
        worker: tuple[int, int] = (0, 1),
        **more: Any,
    ) -> Store:
        """The store to continue, or a new one.

        Args:
            directory: directory of the index.
            identity: description of how its rows are made.
            resume: whether one that is there may be continued.
            worker: index of this process and number of processes; the first
                creates the index.
            **more: further entries of a new manifest, see `Manifest.get`.

        Raises:
            ValueError: if there is one already and `resume` is False, or it
                was made with something else.
        """
        wait_for_index(directory, worker)
        if not (directory / FILE_NAME).is_file():
            Manifest.create(directory, identity, **more)
            return cls(directory, sparing=True)
        if not resume:
            raise ValueError(
                f"{directory} holds an index already. Pass `resume=True` to "
                "continue it, or choose another directory."
            )
        store = cls(directory, sparing=True)
        store.manifest.check(identity)
        return store

    @property
    def pending(self) -> int:
        """Number of rows that were written and do not count yet."""
        listed = self.manifest.num_shards
        paths = self.directory.glob("entries/[0-9]*.json")
        shards = [int(p.stem) for p in paths if int(p.stem) >= listed]
        return self.manifest.count(self.manifest.finished) + sum(
            self._entry(shard)["count"] for shard in shards
        )

    def is_there(self, shard: int) -> bool:
        """Whether some process has put a shard."""
        if self._entry_path(shard).is_file():
            return True
        self.manifest.reread()  # an entry is gone once it is listed
        return shard < self.manifest.num_shards

    def is_finished(self) -> bool:
        """Whether the first process has by now finished the index."""
        self.manifest.reread()
        return bool(self.manifest.finished)

    def check_examples(self, shard: int, digest: str) -> None:
        """Checks that a shard was made from examples with this digest.

        Raises:
            ValueError: if it was not.
        """
        if self._entry(shard)["examples"] != digest:
            ids = self.shards.array("ids", shard)
            raise ValueError(
                f"The index in {self.directory} was begun on other training "
                f"examples: shard {shard} has ids from {ids[0]!r} to "
                f"{ids[-1]!r}; those received have others, or another "
                "content. Give the examples it was begun with, in the same "
                "order, or choose another directory; `resume=False` drops "
                "what an `append` began."
            )

    def put(
        self, shard: int, arrays: Mapping[str, np.ndarray], digest: str
    ) -> None:
        """Writes a shard, for the first process to list.

        Args:
            shard: its number.
            arrays: "rows", "ids" and others, an entry of each per example.
            digest: digest of the examples.

        Raises:
            OSError: if the disk is full; what was put before stays as it is.
        """
        entry: dict[str, Any] = {
            "count": len(arrays["ids"]),
            "examples": digest,
            "files": {},
        }
        size = arrays["rows"].nbytes
        with self._explain_full_disk(f"{size:,} bytes for shard {shard}"):
            for kind, array in arrays.items():
                path = self.shards.path(kind, shard)
                # A scheduler that took a process for dead may have begun anew.
                with files.written_whole(path, unique=True) as unfinished:
                    write_array(unfinished, array)
                entry["files"][kind] = files.describe(path)
            write_json(self._entry_path(shard), entry)

    def take(self, shard: int, digest: str) -> None:
        """Lists the next shard, which some process has put.

        Raises:
            ValueError: if it was made from other examples.
        """
        self.check_examples(shard, digest)
        entries = [*self.manifest.entries, self._entry(shard)]
        self.manifest.change(shards=entries)
        self._entry_path(shard).unlink()

    def write_search(
        self, name: str, write: Callable[[Path], None]
    ) -> dict[str, Any]:
        """Writes a file for the search of all shards that are listed.

        Args:
            name: content of the file, which is its ending.
            write: writes it to a path.

        Returns:
            Size and SHA-256 of the file, for `finish`.
        """
        path = self.search_path(name, self.manifest.num_shards)
        with (
            self._explain_full_disk(f"the file '{name}' for the search"),
            files.written_whole(path) as unfinished,
        ):
            write(unfinished)
        return files.describe(path)

    def search_path(self, name: str, shards: int | None = None) -> Path:
        """A file for the search of some shards, by default the finished."""
        shards = self.manifest.finished if shards is None else shards
        return self.directory / "search" / f"{shards:08d}.{name}"

    def finish(self, search: dict[str, Any]) -> None:
        """Lets all shards that are listed count.

        Args:
            search: entry of the search: its "files" by name, and whatever else
                is to be noted of it.
        """
        shards = self.manifest.num_shards
        self.manifest.change(finished=shards, search=search)
        self._delete_entries()
        for path in self.directory.glob("search/*"):
            if path.name.split(".")[0] != f"{shards:08d}":
                path.unlink()

    def drop_pending(self) -> None:
        """Deletes the rows that do not count yet."""
        entries, finished = self.manifest.entries, self.manifest.finished
        self.manifest.change(shards=entries[:finished])
        self._delete_entries()
        for shard, entry in enumerate(entries[finished:], finished):
            for kind in entry["files"]:
                self.shards.delete(kind, shard)

    def _delete_entries(self) -> None:
        """Deletes entries, and what killed processes left unfinished."""
        for pattern in ("entries/[0-9]*.json", f"*/{files.UNFINISHED}*"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def _entry(self, shard: int) -> dict[str, Any]:
        """The entry of a shard, in the list or still in a file of its own."""
        if shard >= self.manifest.num_shards:
            with contextlib.suppress(FileNotFoundError):
                return _read_entry(self._entry_path(shard))
            self.manifest.reread()  # the first process has just listed it
        return self.manifest.entries[shard]

    def _entry_path(self, shard: int) -> Path:
        return self.directory / "entries" / f"{shard:08d}.json"

    def _explain_full_disk(
        self, what: str
    ) -> contextlib.AbstractContextManager[None]:
        """Says how many rows are kept, if something does not fit the disk."""

        def kept() -> str:
            rows = self.manifest.count(0, self.manifest.finished) + self.pending
            return f"{rows:,} rows"

        return files.explain_full_disk(self.directory, what, kept)


def verify(store: Store) -> None:
    """Compares every file that is listed with its checksum.

    Raises:
        ValueError: naming the first that is missing or damaged.
    """
    expected = {
        store.shards.path(kind, shard): file
        for shard, entry in enumerate(store.manifest.entries)
        for kind, file in entry["files"].items()
    }
    search = store.manifest.get("search") or {"files": {}}
    for name, file in search["files"].items():
        expected[store.search_path(name)] = file
    for path, listed in expected.items():
        received = files.describe(path) if path.is_file() else None
        if received != listed:
            what = "is missing" if received is None else "is damaged"
            raise ValueError(
                f"{path} {what}: received {received}, expected {listed}. "
                f"{REMEDY}"
            )


def _read_entry(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error!r}. Delete it and call this again: "
            "only this shard is made anew."
        ) from error
