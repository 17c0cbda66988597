"""Processes that work together by the files of a directory that they share.

Processes of one cluster do not talk to each other. Each writes files of its
own, whole or absent, and looks for those of the others.

Synopsis:

    write_first(path, text)  # unless another process was first
    read_shared(path)        # what the first has written
    wait_for_worker(path.is_file, 1, 3, "a part")
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_tracin.storage.arrays import save_arrays
from keras_tracin.storage.files import written_whole

_POLL = 0.2  # seconds between looks at what others have done
_PATIENCE = 60.0  # seconds between announcements of waiting


def write_first(path: Path, text: str) -> None:
    """Writes a file, unless another process was first."""
    with _first(path) as own, written_whole(own) as unfinished:
        unfinished.write_text(text)


def read_shared(path: Path) -> Any:
    """The JSON of a file that `write_first` wrote.

    Raises:
        ValueError: if it cannot be read.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(
            f"{path} cannot be read. Delete {path.parent} and call again."
        ) from error


def write_first_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes one `.npz` file, unless another process was first."""
    with _first(path) as own:
        save_arrays(own, arrays)


@contextlib.contextmanager
def _first(path: Path) -> Iterator[Path]:
    """Yields a temporary path, whose file becomes `path` unless that exists."""
    path.parent.mkdir(parents=True, exist_ok=True)
    own = path.with_name(f"{uuid.uuid4().hex}-{path.name}")
    try:
        yield own
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    finally:
        own.unlink(missing_ok=True)


def wait_for_worker(
    there: Callable[[], bool], worker: int, workers: int, what: str
) -> None:
    """Waits until another process has written something.

    Args:
        there: returns whether it is there; called again and again.
        worker: the index of the process that writes it.
        workers: the number of processes that share the work.
        what: name of what is written, for the message.
    """
    announced = time.monotonic()
    while not there():
        time.sleep(_POLL)
        if time.monotonic() - announced > _PATIENCE:
            announced = time.monotonic()
            print(
                f"Waiting for worker {worker} of {workers} to write {what}. "
                "If it has ended, start it again: it goes on where it was.",
                flush=True,
            )
