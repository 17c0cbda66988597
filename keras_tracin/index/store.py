"""Rows on disk: shards that are whole or absent, and a file that lists them.

    index/digits/
      index.json             this module
      rows/00000000.npy      [n, width], float32 or float16
      ids/00000000.npy       [n]
      exact/00000000.npy     [n, queries], where recall is measured
      search/00000003.*      what searches the first 3 shards

`index.json` lists each file after it has reached the disk, with size and
SHA-256, and for each shard a digest of the examples it was made from. A crash
loses the shard in the making and no other. Shards count once the build, or the
`append`, that they belong to is finished: until then readers do not see them.

Any process may put a shard: the entry for the list is a file of its own then,
`entries/00000003.json`, and only the first process changes the list.

Synopsis:

    store = Store.open_or_create(directory, identity, resume=True)
    store.put(0, {"rows": rows, "ids": ids}, digest)
    store.take(0, digest)
    store.finish(search)
    Store(directory).rows(positions)  # [n, width], read from the disk
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.engine.fingerprint import FILE_NAME as FINGERPRINT
from keras_tracin.engine.fingerprint import agree, kept_numbers
from keras_tracin.engine.measures import Numbers
from keras_tracin.models.descriptions import difference
from keras_tracin.storage import files
from keras_tracin.storage.arrays import load_array, write_array
from keras_tracin.storage.sharing import wait_for_worker

FORMAT_VERSION = 3
_READ = (2, 3)
FILE_NAME = "index.json"

REMEDY = "Copy the index again, or delete it and build it anew."


class Store:
    """The rows of an index, and what they were made with.

    Args:
        directory: that of an index.
        sparing: read scattered rows, which is slower, in place of mapping
            them, so that memory does not grow with how many were read.

    Attributes:
        identity: what has to be the same for rows to go together.

    Raises:
        ValueError: if there is no index, or one that cannot be read.
    """

    def __init__(self, directory: Path, sparing: bool = False):
        self.directory = directory
        self._sparing = sparing
        self._manifest = _read(directory / FILE_NAME)
        self.identity: dict[str, Any] = self._manifest["identity"]
        self._mapped: dict[tuple[str, int], np.memmap] = {}

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
            directory: where it is, or is to be.
            identity: what its rows are made with.
            resume: whether one that is there may be continued.
            worker: this process's index, and how many share the work; the
                first of them makes a new one.
            **more: what else a new one is to note, see `noted`.

        Raises:
            ValueError: if there is one already and `resume` is False, or it
                was made with something else.
        """
        wait_for_store(directory, worker)
        if not (directory / FILE_NAME).is_file():
            first = {
                "format_version": FORMAT_VERSION,
                "identity": identity,
                **more,
                "finished": 0,
                "shards": [],
                "search": None,
            }
            _write(directory / FILE_NAME, first)
            return cls(directory, sparing=True)
        if not resume:
            raise ValueError(
                f"{directory} holds an index already. Pass `resume=True` to "
                "continue it, or choose another directory."
            )
        store = cls(directory, sparing=True)
        store.check(identity)
        return store

    def check(self, identity: dict[str, Any]) -> None:
        """Raises ValueError unless the rows were made with this."""
        # Read back, so that both have JSON's types.
        received = json.loads(json.dumps(identity))
        if not self.knows_numbers:
            # Its version has fewer entries, of methods that are the same.
            received = {k: v for k, v in received.items() if k in self.identity}
        found = difference(received, self.identity)
        if found is not None:
            name, new, old = found
            raise ValueError(
                f"The index in {self.directory} was built with another "
                f"{name}: it has {old}, received {new}. Use what it was "
                "built with, or choose another directory."
            )

    @property
    def knows_numbers(self) -> bool:
        """Whether it keeps numbers of what its rows are made with."""
        return self._manifest["format_version"] > _READ[0]

    def made_of(
        self, numbers: Callable[[np.ndarray | None], Numbers], share: float
    ) -> None:
        """Compares what rows are made with, or notes it.

        Args:
            numbers: of the training examples with some ids, or of any that it
                chooses; see `keras_tracin.engine.fingerprint`.
            share: what they may differ by, of the largest of each array.

        Raises:
            ValueError: if the rows were made with something else, or by a
                version that does not say with what.
        """
        path = self.directory / FINGERPRINT
        if not self.knows_numbers:
            raise ValueError(
                f"The index in {self.directory} was begun by an earlier "
                "version of keras_tracin, which does not say what losses and "
                "layers its rows are made with: nothing can be added to it. "
                "It can be opened and queried once it is finished; build "
                "another one, in another directory, to go on."
            )
        # In this order: another process writes its rows after its numbers.
        begun = self.num_shards or any(self.directory.glob("rows/[0-9]*"))
        ids = None
        if path.is_file():
            ids = kept_numbers(path)["ids"]
        elif begun:
            raise ValueError(
                f"{path} is missing, which says what rows are made with. "
                f"{REMEDY}"
            )
        agree(path, numbers(ids), share, "Use what the index was built with")

    def noted(self, name: str) -> Any:
        """Something that the list of files says beside them."""
        return self._manifest[name]

    @property
    def finished(self) -> int:
        """How many shards count."""
        return self._manifest["finished"]

    def is_finished(self) -> bool:
        """Whether another process has by now said that all rows are there."""
        self.reread()
        return bool(self.finished)

    @property
    def num_shards(self) -> int:
        """How many shards are listed."""
        return len(self._manifest["shards"])

    @property
    def size(self) -> int:
        """How many rows are listed."""
        return self._count(0, self.num_shards)

    @property
    def pending(self) -> int:
        """How many rows were written by what was not finished."""
        found = (self.directory / "entries").glob("[0-9]*.json")
        put = [int(p.stem) for p in found if int(p.stem) >= self.num_shards]
        return self._count(self.finished, self.num_shards) + sum(
            self._entry(shard)["count"] for shard in put
        )

    @property
    def nbytes(self) -> int:
        """The size on disk of all that counts, in bytes."""
        entries = self._manifest["shards"][: self.finished]
        files = [file for entry in entries for file in entry["files"].values()]
        files += (self._manifest["search"] or {}).get("files", {}).values()
        return sum(file["size"] for file in files)

    def _count(self, first: int, stop: int) -> int:
        return sum(s["count"] for s in self._manifest["shards"][first:stop])

    @property
    def width(self) -> int:
        """The length of a row."""
        return self._array("rows", 0).shape[1]

    def rows(self, positions: np.ndarray) -> np.ndarray:
        """The rows at some increasing positions, `[len(positions), width]`."""
        counts = [shard["count"] for shard in self._manifest["shards"]]
        starts = np.cumsum([0, *counts])
        places = np.searchsorted(positions, starts)
        dtype = self._array("rows", 0).dtype
        found = np.empty([len(positions), self.width], dtype)
        for shard in np.flatnonzero(np.diff(places)).tolist():
            part = slice(places[shard], places[shard + 1])
            self._read_rows(shard, positions[part] - starts[shard], found[part])
        return found.astype(np.float32, copy=False)

    def _read_rows(
        self, shard: int, places: np.ndarray, out: np.ndarray
    ) -> None:
        """Reads some rows of a shard into `out [len(places), width]`."""
        mapped = self._array("rows", shard)
        if not self._sparing or not hasattr(os, "preadv"):
            out[:] = mapped[places]
            return
        # A page of the map brings its neighbours, and after some thousand
        # scattered rows all of the file counts as this process's memory.
        path = self._path("rows", shard)
        with open(path, "rb", buffering=0) as file:
            for place, row in zip(places.tolist(), out, strict=True):
                at = mapped.offset + place * row.nbytes
                if os.preadv(file.fileno(), [row], at) != row.nbytes:
                    raise ValueError(
                        f"{path} is damaged: it ends before row {place}. "
                        f"{REMEDY}"
                    )

    def ids(self) -> np.ndarray:
        """The ids of all rows, in order."""
        shards = range(self.num_shards)
        return np.concatenate([self._array("ids", shard) for shard in shards])

    def blocks(self, kind: str = "rows") -> Iterator[tuple[int, np.ndarray]]:
        """Each shard's first row number and this array of its.

        One after another is read and let go: memory does not grow.
        """
        start = 0
        for shard in range(self.num_shards):
            path = self._path(kind, shard)
            block = load_array(path, REMEDY, mapped=True)
            yield start, block
            start += len(block)
            del block

    def has(self, kind: str) -> bool:
        """Whether shards have an array of this kind."""
        return kind in self._manifest["shards"][0]["files"]

    def _array(self, kind: str, shard: int) -> np.memmap:
        """One of a shard's arrays, read from the disk as needed."""
        if (kind, shard) not in self._mapped:
            path = self._path(kind, shard)
            array = load_array(path, REMEDY, mapped=True)
            self._mapped[kind, shard] = array
        return self._mapped[kind, shard]

    def is_there(self, shard: int) -> bool:
        """Whether somebody has put a shard."""
        if self._entry_path(shard).is_file():
            return True
        self.reread()  # an entry is gone once it is listed
        return shard < self.num_shards

    def reread(self) -> None:
        """Looks at what another process has listed."""
        self._manifest = _read(self.directory / FILE_NAME)

    def holds(self, shard: int, digest: str) -> None:
        """Checks that a shard was made from examples with this digest.

        Raises:
            ValueError: if it was not.
        """
        if self._entry(shard)["examples"] != digest:
            ids = self._array("ids", shard)
            raise ValueError(
                f"The index in {self.directory} was begun on other training "
                f"examples: shard {shard} has ids from {ids[0]!r} to "
                f"{ids[-1]!r}; those received have others, or another "
                "content. Give the examples it was begun with, in the same "
                "order, or choose another directory; `resume=False` drops "
                "what an `append` began."
            )

    def check_room(self, needed: int) -> None:
        """Raises OSError unless the disk has room for so many bytes."""
        files.check_room(
            self.directory,
            needed,
            "index",
            "Free space, choose another directory, `dtype='float16'`, or a "
            "projection of a smaller `dim`",
        )

    def put(
        self, shard: int, arrays: Mapping[str, np.ndarray], digest: str
    ) -> None:
        """Writes a shard, for the first process to list.

        Args:
            shard: its number.
            arrays: "rows", "ids" and others, an entry of each per example.
            digest: that of the examples.

        Raises:
            OSError: if the disk is full; what was put before stays as it is.
        """
        entry: dict[str, Any] = {
            "count": len(arrays["ids"]),
            "examples": digest,
            "files": {},
        }
        with self._kept(f"{arrays['rows'].nbytes:,} bytes for shard {shard}"):
            for kind, array in arrays.items():
                path = self._path(kind, shard)
                # A scheduler that took a process for dead may have begun anew.
                with files.written_whole(path, unique=True) as unfinished:
                    write_array(unfinished, array)
                entry["files"][kind] = files.describe(path)
            _write(self._entry_path(shard), entry)

    def take(self, shard: int, digest: str) -> None:
        """Lists the next shard, which somebody has put.

        Raises:
            ValueError: if it was made from other examples.
        """
        self.holds(shard, digest)
        self._list(shards=[*self._manifest["shards"], self._entry(shard)])
        self._entry_path(shard).unlink()

    def _kept(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Says what is kept, if something does not fit the disk."""

        def kept() -> str:
            return f"{self._count(0, self.finished) + self.pending:,} rows"

        return files.explain_full_disk(self.directory, what, kept)

    def write_search(self, name: str, write) -> dict[str, Any]:
        """Writes a file for the search of all shards that are listed.

        Args:
            name: what it holds; its ending.
            write: writes it to a path.

        Returns:
            What is to be said of it to `finish`.
        """
        path = self.search_path(name, self.num_shards)
        with (
            self._kept(f"the file '{name}' for the search"),
            files.written_whole(path) as unfinished,
        ):
            write(unfinished)
        return files.describe(path)

    def search_path(self, name: str, shards: int | None = None) -> Path:
        """Where a file for the search is."""
        shards = self.finished if shards is None else shards
        return self.directory / "search" / f"{shards:08d}.{name}"

    def finish(self, search: dict[str, Any]) -> None:
        """Says that all rows are there, and what searches them.

        Args:
            search: its "files" by name, and whatever else it wants to know.
        """
        self._list(finished=self.num_shards, search=search)
        self._drop_entries()
        for path in self.directory.glob("search/*"):
            if path.name.split(".")[0] != f"{self.finished:08d}":
                path.unlink()

    def drop_pending(self) -> None:
        """Forgets the rows of what was not finished."""
        dropped = range(self.finished, self.num_shards)
        kinds = {
            kind
            for entry in self._manifest["shards"][self.finished :]
            for kind in entry["files"]
        }
        self._list(shards=self._manifest["shards"][: self.finished])
        self._drop_entries()
        for shard in dropped:
            for kind in kinds:
                self._mapped.pop((kind, shard), None)
                self._path(kind, shard).unlink(missing_ok=True)

    def _drop_entries(self) -> None:
        """Deletes entries, and what killed processes left unfinished."""
        for pattern in ("entries/[0-9]*.json", f"*/{files.UNFINISHED}*"):
            for path in self.directory.glob(pattern):
                path.unlink(missing_ok=True)

    def _entry(self, shard: int) -> dict[str, Any]:
        """What is to be listed of a shard that is there, or is listed."""
        if shard >= self.num_shards:
            with contextlib.suppress(FileNotFoundError):
                return _parsed(self._entry_path(shard))
            self.reread()  # the first process has taken it just now
        return self._manifest["shards"][shard]

    def _entry_path(self, shard: int) -> Path:
        return self.directory / "entries" / f"{shard:08d}.json"

    def _list(self, **changes: Any) -> None:
        listed = {**self._manifest, **changes}
        _write(self.directory / FILE_NAME, listed)
        self._manifest = listed

    def only_finished(self) -> Store:
        """The same without the shards that do not count."""
        found = Store(self.directory)
        shards = found._manifest["shards"][: found.finished]
        found._manifest = {**found._manifest, "shards": shards}
        return found

    def verify(self) -> None:
        """Compares every file that is listed with its checksum.

        Raises:
            ValueError: naming the first that is missing or damaged.
        """
        expected = {
            self._path(kind, shard): file
            for shard, entry in enumerate(self._manifest["shards"])
            for kind, file in entry["files"].items()
        }
        search = self._manifest["search"] or {"files": {}}
        for name, file in search["files"].items():
            expected[self.search_path(name)] = file
        for path, listed in expected.items():
            found = files.describe(path) if path.is_file() else None
            if found != listed:
                what = "is missing" if found is None else "is damaged"
                raise ValueError(
                    f"{path} {what}: received {found}, expected {listed}. "
                    f"{REMEDY}"
                )

    def _path(self, kind: str, shard: int) -> Path:
        return self.directory / kind / f"{shard:08d}.npy"


def wait_for_store(directory: Path, worker: tuple[int, int]) -> None:
    """Returns once there is an index, if another process is to begin it."""
    index, workers = worker
    if index:
        path = directory / FILE_NAME
        wait_for_worker(path.is_file, 0, workers, str(path))


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2)
    with files.written_whole(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: {error!r}. Delete it and call this again: "
            "only this shard is made anew."
        ) from error


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
        raise ValueError(f"{path} is damaged: {error!r}. {REMEDY}") from error
    if version not in _READ or not known:
        raise ValueError(
            f"{path} has format version {version!r}, but this version of "
            f"keras_tracin reads {_READ}. Update keras_tracin, or "
            "build the index anew."
        )
    return manifest
