"""Files that are either whole or absent, and that can be checked later.

Synopsis:

    with written_whole(path) as unfinished:
        unfinished.write_text("...")
    entry = describe(path)  # {"size": ..., "sha256": ...}
    check_digest(path, entry["sha256"])
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

# A prefix, since Keras insists on the ending of a weights file's name.
UNFINISHED = "unfinished-"

_HELP = "Copy the run directory again, or train again into a new one."


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose file replaces `path` if all goes well.

    When the block ends, the content has reached the disk and `path` names all
    of it. A crash at any moment leaves `path` as it was, or complete.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(UNFINISHED + path.name)
    try:
        yield unfinished
        _flush_to_disk(unfinished)
        os.replace(unfinished, path)
        _flush_to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> dict:
    """Size in bytes and SHA-256 of a file, as a manifest lists them."""
    return {"size": path.stat().st_size, "sha256": digest(path)}


def check_size(path: Path, size: int) -> None:
    """Raises ValueError unless the file is there with this many bytes."""
    if not path.is_file():
        raise ValueError(f"{path} is missing, though the run lists it. {_HELP}")
    found = path.stat().st_size
    if found != size:
        raise ValueError(
            f"{path} is damaged: it has {found} bytes, expected {size}. {_HELP}"
        )


def check_digest(path: Path, sha256: str) -> None:
    """Raises ValueError unless the file is there with this content."""
    found = digest(path) if path.is_file() else None
    if found is None:
        raise ValueError(f"{path} is missing, though the run lists it. {_HELP}")
    if found != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {found}, expected {sha256}. "
            f"{_HELP}"
        )
