"""Processes that share a directory: who is first, and waiting for the others.

Processes of one cluster do not talk to each other. Each writes files of its
own, whole or absent, and looks for those of the others.

Synopsis:

    write_first(path, text)  # unless another process was first
    wait_for_worker(path.is_file, 1, 3, "a part")
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from keras_tracin.storage.arrays import save_arrays
from keras_tracin.storage.files import written_whole

_POLL = 0.2  # seconds between looks at what others have done
_PATIENCE = 60.0  # seconds after which waiting is announced, again and again


def write_first(path: Path, text: str) -> None:
    """Writes a file, unless another process was first."""
    with _first(path) as own, written_whole(own) as unfinished:
        unfinished.write_text(text)


def write_first_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Writes one `.npz` file, unless another process was first."""
    with _first(path) as own:
        save_arrays(own, arrays)


@contextlib.contextmanager
def _first(path: Path) -> Iterator[Path]:
    """Yields a path whose file becomes `path`, unless there is one by then."""
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
    """Returns once another process has written something.

    Args:
        there: asked again and again.
        worker: the index of the process whose work it is.
        workers: how many share the work.
        what: it, in words.
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
