"""Room on the disk for finished parts, and errors that say what is kept.

Synopsis:

    with making_room(directory, "part-0000-000003.npz", needed=4096):
        path.write_bytes(content)
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from keras_tracin.storage.files import DISK_IS_FULL, check_room


def check_matrix_room(directory: Path, needed: int) -> None:
    """Raises OSError unless the disk has room for a matrix of scores.

    Args:
        directory: directory of the parts.
        needed: size of the matrix in bytes.
    """
    check_room(
        directory,
        needed,
        "matrix of scores",
        "All its parts are kept. Make room and call again, or use `top_k`, "
        "which makes no matrix, in another directory",
    )


@contextlib.contextmanager
def making_room(directory: Path, what: str, needed: int = 0) -> Iterator[None]:
    """Says which parts are kept, if something does not fit the disk.

    Args:
        directory: directory of the parts.
        what: what is written, in words.
        needed: its size in bytes, where it is known.

    Raises:
        OSError: in place of the one that says that the disk is full.
    """
    try:
        yield
    except OSError as error:
        told = str(error.strerror).startswith("The disk is")
        if error.errno not in DISK_IS_FULL or told:
            raise
        kept = len(list(directory.glob("part-*.npz")))
        free = shutil.disk_usage(directory).free
        size = f" ({needed:,} bytes)" if needed else ""
        raise OSError(
            error.errno,
            f"The disk is full: {what}{size} did not fit into "
            f"{directory}, {free:,} bytes are free. {kept:,} finished "
            "parts are kept. Make room and call again: it goes on from "
            "there",
        ) from error
