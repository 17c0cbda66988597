"""Files that are either whole or absent, and that can be checked later.

Synopsis:

    with written_whole(path) as unfinished:
        unfinished.write_text("...")
    entry = describe(path)  # {"size": ..., "sha256": ...}
    check_digest(path, entry["sha256"], "Copy the directory again.")
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

# Numbers of the errors that are solved by making room.
DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# A prefix, since Keras insists on the ending of a weights file's name.
UNFINISHED = "unfinished-"


def absolute_directory(directory: str | os.PathLike) -> Path:
    """The absolute path of a directory that a user named.

    It need not exist. It stays the same where the process changes its working
    directory.

    Raises:
        TypeError: if it is no path.
        ValueError: if it is empty, a URL, or below a file.
    """
    try:
        name = os.fspath(directory)
    except TypeError:
        name = None
    if not isinstance(name, str):
        raise TypeError(
            f"Received directory={directory!r}, expected the path of a "
            "directory: a string or a pathlib.Path."
        )
    if not name.strip() or "\0" in name:
        raise ValueError(
            f"Received directory={directory!r}, expected the name of a "
            "directory. Use '.' for the current one."
        )
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+:/", name):
        raise ValueError(
            f"Received directory={directory!r}, expected a directory of a "
            "file system. Mount the bucket, or copy the directory afterwards."
        )
    path = Path(os.path.abspath(name))
    for place in (path, *path.parents):
        if place.is_dir():
            break
        if place.exists():
            raise ValueError(
                f"Received directory={directory!r}, but {place} is a file; "
                "expected a directory. Choose another name, or delete it."
            )
    return path


def display_path(path: Path) -> str:
    """A path for people to read: relative, below the working directory."""
    with contextlib.suppress(ValueError, OSError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


@contextlib.contextmanager
def written_whole(path: Path, unique: bool = False) -> Iterator[Path]:
    """Yields a temporary path whose file replaces `path` if all goes well.

    When the block ends, the content has reached the disk and `path` names all
    of it. A crash at any moment leaves `path` as it was, or complete.

    Args:
        path: the file to write.
        unique: whether another process may be writing the same file. The
            temporary name is then a new one each time, so that a file left by
            a crash is not replaced by the next attempt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = f".{uuid.uuid4().hex}" if unique else ""
    unfinished = path.with_name(UNFINISHED + path.name + ending)
    try:
        yield unfinished
        _flush_to_disk(unfinished)
        os.replace(unfinished, path)
        _flush_to_disk(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def error_keeping(path: Path) -> Iterator[ErrorKeepingFile]:
    """Opens a file for a library that must not see an error while it writes.

    HDF5 ends the process, now or later, if the disk refuses a write. So an
    error is kept back until the library is done.

    Raises:
        OSError: when the block ends, if something could not be written.
    """
    with open(path, "w+b", buffering=0) as raw:
        file = ErrorKeepingFile(path, raw)
        try:
            yield file
        except Exception:
            if file.error is None:
                raise
    if file.error is not None:
        raise file.error


class ErrorKeepingFile(io.BytesIO):
    """Acts as a file that can always be written; see `error_keeping`.

    It is a `BytesIO`, though not in memory, and a path at the same time: that
    is how Keras lets a file object be its weights file.

    Attributes:
        error: the first error, after which nothing more is written.
    """

    def __init__(self, path: Path, raw: io.FileIO):
        super().__init__()
        self._path, self._raw = path, raw
        self.error: OSError | None = None

    def __fspath__(self) -> str:
        return os.fspath(self._path)

    def __str__(self) -> str:
        return str(self._path)

    def write(self, data) -> int:
        """Writes all of `data`, or keeps the error."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Sets the file's size, or keeps the error."""
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def seek(self, offset: int, whence: int = 0) -> int:
        """Moves to a position, as `io.BytesIO.seek`."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """The position, as `io.BytesIO.tell`."""
        return self._raw.tell()

    def readinto(self, buffer) -> int:
        """Fills a buffer, as `io.BytesIO.readinto`."""
        return self._raw.readinto(buffer)

    def read(self, size: int | None = -1) -> bytes:
        """Reads bytes, as `io.BytesIO.read`."""
        return self._raw.read(-1 if size is None else size)

    def flush(self) -> None:
        """Does nothing: nothing is buffered."""


def _flush_to_disk(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a directory.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(directory: Path, needed: int, what: str, remedy: str) -> None:
    """Raises OSError unless the disk has room for this many bytes.

    Args:
        directory: the directory to write to.
        needed: the number of bytes.
        what: name of the data, for the error.
        remedy: advice where there is too little room, a sentence without its
            full stop.
    """
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"The disk is too full: {needed:,} bytes are needed for the {what} "
            f"in {directory}, {free:,} are free. {remedy}",
        )


@contextlib.contextmanager
def explain_full_disk(
    directory: Path, what: str, kept: Callable[[], str]
) -> Iterator[None]:
    """Raises an error that says what is kept where the disk becomes full.

    Args:
        directory: the directory that is written to.
        what: name of what is written, for the error.
        kept: returns a name of what stays there; called once the disk is full.

    Raises:
        OSError: if the block raises one because the disk is full.
    """
    try:
        yield
    except OSError as error:
        explained = str(error.strerror).startswith("The disk is")
        if error.errno not in DISK_IS_FULL or explained:
            raise
        free = shutil.disk_usage(directory).free
        raise OSError(
            error.errno,
            f"The disk is full: {what} did not fit into {directory}, "
            f"{free:,} bytes are free. {kept()} are kept. Make room and call "
            "again: it goes on from there",
        ) from error


def digest(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(path: Path) -> dict:
    """Size in bytes and SHA-256 of a file, as a manifest lists them."""
    return {"size": path.stat().st_size, "sha256": digest(path)}


def check_size(path: Path, size: int, remedy: str) -> None:
    """Raises ValueError unless the file is there with this many bytes.

    Args:
        path: the file.
        size: number of bytes that are listed.
        remedy: advice about a damaged file, a sentence for errors.
    """
    _check_is_there(path, remedy)
    received = path.stat().st_size
    if received != size:
        raise ValueError(
            f"{path} is damaged: it has {received} bytes, expected {size}. "
            f"{remedy}"
        )


def check_digest(path: Path, sha256: str, remedy: str) -> None:
    """Raises ValueError unless the file is there with this content.

    Args:
        path: the file.
        sha256: hexadecimal SHA-256 that is listed.
        remedy: advice about a damaged file, a sentence for errors.
    """
    _check_is_there(path, remedy)
    received = digest(path)
    if received != sha256:
        raise ValueError(
            f"{path} is damaged: its SHA-256 is {received}, expected {sha256}. "
            f"{remedy}"
        )


def _check_is_there(path: Path, remedy: str) -> None:
    if not path.is_file():
        raise ValueError(f"{path} is missing, though it is listed. {remedy}")
