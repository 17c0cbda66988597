"""One writer at a time for the directory of a run.

Synopsis:

    lock = RunLock(directory)      # or ValueError: another one has it
    lock.ensure()                  # before each write
    lock.release()

The lock is the kernel's, on a small file in the directory. A process that is
killed, in whatever way, has released it; the file that it leaves does no harm.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt

    def _try_to_lock(descriptor: int) -> None:
        # A byte that nobody reads: Windows denies reading what is locked.
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_to_lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


FILE_NAME = "recording.lock"

_BUSY = {errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK}

# The locks of this process, by the directory's device and inode.
_held: dict[tuple[int, int], weakref.ref[RunLock]] = {}
_registry = threading.RLock()


class RunLock:
    """The right to write a run, from construction until `release`.

    It also ends with the object, and with the process.

    A thread trains one model at a time. So a second request in the thread of a
    holder gets the lock: the holder's training has ended by an exception that
    kept it from releasing the lock. If it goes on after all, `ensure` raises.

    Args:
        directory: The directory of the run. It is made if needed.
        fit: An object that all callbacks of one `fit` share, and no two fits:
            two of them may not write to one directory.

    Raises:
        OSError: The directory cannot be written to.
        ValueError: Another training records into it.
    """

    def __init__(self, directory: Path, fit: Any = None):
        self.directory = directory
        self._fit = fit
        self._thread = threading.current_thread()
        self._file: _LockFile | None = None
        self._end: Any = None
        self._acquire()

    def _acquire(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        status = self.directory.stat()
        key = status.st_dev, status.st_ino
        with _registry:
            holder = _held.get(key)
            self._replace(holder() if holder is not None else None)
            file = _LockFile(self.directory)
            self._end = weakref.finalize(self, _end, key, file)
            _held[key] = weakref.ref(self)
            self._file = file

    def _replace(self, holder: RunLock | None) -> None:
        """Releases the lock of a holder in this process, or raises an error."""
        if holder is None:
            return
        if self._fit is not None and holder._fit is self._fit:
            raise ValueError(
                "Two TracInCheckpoint of one fit record into "
                f"{self.directory}, expected one for each directory. Leave one "
                "out, or give it another directory."
            )
        if holder._thread is self._thread or not holder._thread.is_alive():
            holder.release()
            return
        raise ValueError(
            f"The thread {holder._thread.name!r} of this process records into "
            f"{self.directory}, expected one training at a time. Wait until "
            "it has ended, or choose another directory. If it has ended in an "
            "exception, call `on_train_end()` of its TracInCheckpoint."
        )

    def ensure(self) -> None:
        """Takes the lock again if another training held it in between.

        Raises:
            ValueError: The other training still holds it.
        """
        if self._file is None or not self._file.is_own:
            self._acquire()

    def release(self) -> None:
        """Releases the lock; may be called more than once."""
        with _registry:
            if self._file is not None:
                self._end()
                self._file = None


def _end(key: tuple[int, int], file: _LockFile) -> None:
    with _registry:
        _held.pop(key, None)
        file.close()


class _LockFile:
    """A file that no other open file has locked."""

    def __init__(self, directory: Path):
        self._path = directory / FILE_NAME
        self._process = os.getpid()
        self._descriptor: int | None = None
        while not self._open():
            pass
        _open_files.add(self)

    def _open(self) -> bool:
        """Tries to lock the file; False if it was deleted meanwhile."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor)
            if self._names(descriptor):
                self._descriptor = descriptor
        finally:
            if self._descriptor is None:
                os.close(descriptor)
        return self._descriptor is not None  # else deleted by its holder

    def _lock(self, descriptor: int) -> None:
        try:
            _try_to_lock(descriptor)
        except OSError as error:
            if error.errno in _BUSY:
                raise ValueError(
                    f"{self._holder(descriptor)} records into "
                    f"{self._path.parent}, expected one training at a time. "
                    "Wait until it has ended, stop it, or choose another "
                    "directory."
                ) from None
            warnings.warn(
                f"The file system of {self._path.parent} has no locks "
                f"({error}). See to it yourself that no other process records "
                "into this directory.",
                stacklevel=2,
            )
        holder = f"Process {os.getpid()} on {socket.gethostname()}"
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, holder.encode())

    def _holder(self, descriptor: int) -> str:
        """The name that the holder of the lock wrote into the file."""
        with contextlib.suppress(OSError):
            os.lseek(descriptor, 0, os.SEEK_SET)
            text = os.read(descriptor, 300).decode(errors="replace")
            if text.startswith("Process "):
                return text
        return "Another process"

    def _names(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except FileNotFoundError:
            return False

    @property
    def is_own(self) -> bool:
        """Whether this process, not one that it was forked from, locked it."""
        return os.getpid() == self._process

    def close(self) -> None:
        """Releases the lock, and leaves no file behind."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        with contextlib.suppress(OSError):
            # While nobody else can have locked it. Windows deletes no file
            # that is open.
            if os.name != "nt" and self.is_own and self._names(descriptor):
                self._path.unlink()
        os.close(descriptor)


_open_files: weakref.WeakSet[_LockFile] = weakref.WeakSet()


def _forget() -> None:
    """Closes the lock files in a forked child.

    It would keep the parent's locks past the parent's end.
    """
    global _registry
    _registry = threading.RLock()  # Another thread may have had it.
    for file in list(_open_files):
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
