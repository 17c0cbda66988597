"""Keeping what leads to a model no longer, as a run of its own.

A directory holds the run that led to the model's present weights. What it held
before is kept beside, in the same directory: another training, or steps that
came after the ones that the model went back to.

Synopsis:

    kept = keep_earlier(directory)      # runs/digits/earlier-1
    TrainingRun(kept)                   # the run as it was until now
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from keras_tracin.runs import manifest as run_manifest
from keras_tracin.storage import files

_NAME = re.compile(r"earlier-(\d+)")


def keep_earlier(directory: Path) -> Path:
    """Makes a second run of the one in a directory, which may then change.

    Its files are shared, which takes no room, where the file system has hard
    links. No file of a run is ever changed, only replaced.

    Args:
        directory: the directory of a run that can be read.

    Returns:
        The directory of the second run, within the first.

    Raises:
        OSError: the file system refuses it.
    """
    manifest = run_manifest.read(directory)
    text = (directory / run_manifest.FILE_NAME).read_text("utf-8")
    matches = [_NAME.fullmatch(path.name) for path in directory.iterdir()]
    last = max((int(m[1]) for m in matches if m), default=0)
    target = directory / f"earlier-{last}"
    if _manifest_text(target) == text:
        return target  # The process was killed right after it.
    if not last or run_manifest.exists(target):
        target = directory / f"earlier-{last + 1}"
    for entry in run_manifest.listed_files(manifest):
        with files.written_whole(target / entry["file"]) as unfinished:
            _link(directory / entry["file"], unfinished)
    # Last, since it is what makes the files a run.
    with files.written_whole(target / run_manifest.FILE_NAME) as unfinished:
        unfinished.write_text(text, encoding="utf-8")
    return target


def _manifest_text(directory: Path) -> str | None:
    path = directory / run_manifest.FILE_NAME
    return path.read_text("utf-8") if path.is_file() else None


def _link(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
