"""Arrays on disk: written whole or not at all, and read without pickle.

Synopsis:

    save_arrays(path, {"scores": scores, "ids": ids})
    arrays = load_arrays(path, "Delete it and call again.")
    arrays["scores"], arrays["ids"]
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from keras_tracin.storage.files import written_whole

# What NumPy and zipfile raise for files that were cut short or altered.
_DAMAGE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def save_arrays(
    path: Path, arrays: Mapping[str, Any], unique: bool = False
) -> None:
    """Writes one `.npz` file, whatever its ending, whole or not at all.

    Args:
        path: the file.
        arrays: the arrays, by name.
        unique: whether another process may be writing the same file.
    """
    with (
        written_whole(path, unique) as unfinished,
        open(unfinished, "wb") as file,
    ):
        np.savez(file, **arrays)


def load_arrays(
    path: str | os.PathLike,
    remedy: str,
    names: Iterable[str] | None = None,
    what: str = "`.npz` file",
) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file, by name.

    Zip files hold checksums, so that damage does not go unnoticed.

    Args:
        path: the file.
        remedy: advice about a damaged file, a sentence for errors.
        names: names of the arrays that the file should hold; any by default.
        what: kind of file that is expected, for errors.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is damaged, or holds other arrays.
    """
    with open(path, "rb") as file:
        try:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("it is no zip file")
            file.seek(0)
            with np.load(file, allow_pickle=False) as stored:
                arrays = dict(stored)
        except _DAMAGE as error:
            raise ValueError(
                f"{os.fspath(path)} is damaged, or no {what}: "
                f"{str(error).rstrip('.')}. {remedy}"
            ) from error
    if names is not None and sorted(names) != sorted(arrays):
        raise ValueError(
            f"{os.fspath(path)} is no {what}: received arrays "
            f"{sorted(arrays)}, expected {sorted(names)}. {remedy}"
        )
    return arrays


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes one array in NumPy's format to a path, whatever its ending.

    Use it inside `written_whole`.

    Raises:
        OSError: if the disk refuses a part of it.
    """
    with open(path, "wb") as file:
        np.save(_Sink(file), array, allow_pickle=False)


class _Sink:
    """A file to NumPy, which has no part in how it is written.

    Into a file that it knows NumPy writes by itself, and does not notice where
    the disk refuses the last of it.
    """

    def __init__(self, file: BinaryIO):
        self.write = file.write


def load_array(path: Path, remedy: str, mapped: bool = False) -> Any:
    """The array in a file of NumPy's format, or a map of it.

    Args:
        path: the file.
        remedy: advice about a damaged file, a sentence for errors.
        mapped: whether to return a read-only `np.memmap`.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if its size or its header is damaged. There is no checksum:
            `keras_tracin.storage.files.check_digest` compares the content.
    """
    with open(path, "rb"):
        pass
    try:
        return np.load(
            path, mmap_mode="r" if mapped else None, allow_pickle=False
        )
    except _DAMAGE as error:
        raise ValueError(
            f"{path} is damaged: {str(error).rstrip('.')}. {remedy}"
        ) from error
