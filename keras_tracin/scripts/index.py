"""Builds an index of training examples, which answers queries in milliseconds.

    keras_tracin-index --task=digits_task --index=index/digits --dim=1024
    keras_tracin-query --task=digits_task --index=index/digits --queries=3

Every training example's gradient is sketched at every checkpoint, into --dim
numbers, and written to the directory of the index. The same command continues a
build that was interrupted. At the end, the program prints the size of the index
and its recall: the share of the strongest examples by exact scores that it
finds.

An index of influence functions, at the last checkpoint of the run:

    keras_tracin-index --task=digits_task --index=index/digits_influence \\
        --method=influence --solver=sketch --damping=0.01
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from keras_tracin.index import InfluenceIndex
from keras_tracin.index.manifest import FILE_NAME
from keras_tracin.scripts import _flags
from keras_tracin.scripts._files_task import FilesTask
from keras_tracin.scripts._job import Job, check_indexed, open_job
from keras_tracin.scripts._methods import create_method
from keras_tracin.scripts._program import SUCCESS, Program, UsageError
from keras_tracin.scripts._reading import write_reading


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("index", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_method(values)
    options: dict[str, Any] = {
        "flag_values": values,
        "module_name": _flags.INDEX,
    }
    flags.DEFINE_string(
        "index", None, "Directory of the index.", required=True, **options
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        ("float32", "float16", "int8"),
        "Precision of rows on disk.",
        **options,
    )
    flags.DEFINE_enum(
        "search",
        None,
        ("exact", "flat", "hnsw", "ivf"),
        "Search method. Default: the first that is fast enough.",
        **options,
    )
    _flags.define_overwrite(
        values, "Delete an existing index in the directory and begin anew."
    )
    _flags.define_quiet(values)


def _work(values: flags.FlagValues) -> int:
    check_indexed(values.method)
    directory = _directory(values)
    with open_job(values) as job:
        index = _build(job, directory)
        if isinstance(job.task, FilesTask):
            write_reading(directory, job.task.reading)
        if not values.quiet:
            print(index)
    return SUCCESS


def _directory(values: flags.FlagValues) -> Path:
    """The directory of the index; refuses one that holds other files."""
    directory = Path(values.index)
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"--index='{directory}' is a file.")
    files = sorted(directory.iterdir()) if directory.exists() else []
    if files and not (directory / FILE_NAME).is_file():
        raise UsageError(
            f"--index='{directory}' holds no index but other files, "
            f"'{files[0].name}' for one. Choose another directory."
        )
    return directory


def _build(job: Job, directory: Path) -> InfluenceIndex:
    values = job.values
    method: Any = create_method(job, indexed=True)
    if values.overwrite and directory.exists():
        shutil.rmtree(directory)
    return InfluenceIndex.build(
        method,
        directory,
        projection=None if values.method == "influence" else job.projection(),
        dtype=values.dtype,
        search=values.search,
    )


if __name__ == "__main__":
    sys.exit(main())
