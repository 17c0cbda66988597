"""The file that lists what an index holds, `index.json`.

It lists each file once it has reached the disk, with size and SHA-256, and
for each shard a digest of the examples that it was made from. A list is
replaced as a whole: a reader sees the one before or the one after.

Synopsis:

    manifest = Manifest.create(directory, identity, layers=[])
    manifest.change(shards=[*manifest.entries, entry])
    Manifest.read(directory).check({**identity, "dtype": "float32"})
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from keras_tracin.models.descriptions import difference
from keras_tracin.storage import files
from keras_tracin.storage.sharing import wait_for_worker

FORMAT_VERSION = 5
READABLE = (2, 3, 4, 5)
FILE_NAME = "index.json"

REMEDY = "Copy the index again, or delete it and build it anew."


class Manifest:
    """The content of an `index.json`.

    Args:
        directory: directory of the index.
        content: content of the file.

    Attributes:
        directory: directory of the index.
    """

    def __init__(self, directory: Path, content: dict[str, Any]):
        self.directory = directory
        self._content = content

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest in a directory.

        Raises:
            ValueError: if there is none, or one that cannot be read.
        """
        return cls(directory, _read(directory / FILE_NAME))

    @classmethod
    def create(
        cls, directory: Path, identity: dict[str, Any], **more: Any
    ) -> Manifest:
        """Writes the manifest of an index without shards.

        Args:
            directory: directory of the index.
            identity: description of how its rows are made.
            **more: further entries, see `get`.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "identity": identity,
            **more,
            "finished": 0,
            "shards": [],
            "search": None,
        }
        write_json(directory / FILE_NAME, content)
        return cls.read(directory)

    @property
    def identity(self) -> dict[str, Any]:
        """The description that all rows of one index share."""
        return self._content["identity"]

    @property
    def knows_numbers(self) -> bool:
        """Whether the index keeps numbers of what its rows are made with."""
        return self._content["format_version"] > READABLE[0]

    @property
    def factors_recurrences(self) -> bool:
        """Whether rows are made of factors of recurrent layers, as queries."""
        return self._content["format_version"] > READABLE[1]

    def get(self, name: str) -> Any:
        """An entry of the list."""
        return self._content[name]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The shards that are listed, in order."""
        return self._content["shards"]

    @property
    def num_shards(self) -> int:
        """Number of shards that are listed."""
        return len(self.entries)

    @property
    def finished(self) -> int:
        """Number of shards that belong to a finished build or `append`."""
        return self._content["finished"]

    def count(self, first: int = 0, stop: int | None = None) -> int:
        """Number of rows in the shards from `first` up to `stop`."""
        return sum(entry["count"] for entry in self.entries[first:stop])

    @property
    def nbytes(self) -> int:
        """Size on disk of the finished shards and of their search, in bytes."""
        entries = self.entries[: self.finished]
        listed = [file for entry in entries for file in entry["files"].values()]
        listed += (self._content["search"] or {}).get("files", {}).values()
        return sum(file["size"] for file in listed)

    def check(self, identity: dict[str, Any]) -> None:
        """Raises ValueError unless the rows were made with this."""
        # Read back, so that both have JSON's types.
        received = json.loads(json.dumps(identity))
        if not self.knows_numbers:
            # Its version has fewer entries, of methods that are the same.
            received = {k: v for k, v in received.items() if k in self.identity}
        # An option that has come since, and is not used, changes nothing.
        received = {
            name: entry
            for name, entry in received.items()
            if entry is not None or name in self.identity
        }
        mismatch = difference(received, self.identity)
        if mismatch is not None:
            name, new, old = mismatch
            raise ValueError(
                f"The index in {self.directory} was built with another "
                f"{name}: it has {old}, received {new}. Use what it was "
                "built with, or choose another directory."
            )

    def change(self, **entries: Any) -> None:
        """Replaces some entries, on the disk and here."""
        content = {**self._content, **entries}
        write_json(self.directory / FILE_NAME, content)
        self._content = content

    def reread(self) -> None:
        """Reads what another process has listed."""
        self._content = _read(self.directory / FILE_NAME)

    def leave_out_pending(self) -> None:
        """Forgets here, not on the disk, the shards that are not finished."""
        shards = self.entries[: self.finished]
        self._content = {**self._content, "shards": shards}


def wait_for_index(directory: Path, worker: tuple[int, int]) -> None:
    """Returns once there is an index, if another process is to begin it.

    Args:
        directory: directory of the index.
        worker: index of this process and number of processes; the first
            begins the index.
    """
    index, workers = worker
    if index:
        path = directory / FILE_NAME
        wait_for_worker(path.is_file, 0, workers, str(path))


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all."""
    text = json.dumps(content, indent=2)
    with files.written_whole(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"Expected the directory of an index, but {path} does not exist. "
            "Build one with `InfluenceIndex.build(method, directory)`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["format_version"]
        identity, shards = content["identity"], content["shards"]
        known = isinstance(identity, dict) and isinstance(shards, list)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. {REMEDY}") from error
    if version not in READABLE or not known:
        raise ValueError(
            f"{path} has format version {version!r}, but this version of "
            f"keras_tracin reads {READABLE}. Update keras_tracin, or "
            "build the index anew."
        )
    return content
