"""Checks that a model, its data and its run are ready for attribution.

    keras_tracin-check --task=digits_task

Tests the layers, the loss, the data, every checkpoint of the run and a small
part of the computation, and prints its findings: errors first, then warnings
and notes, then the memory and time that scoring the task's queries will take
(without a `test()`: self-influence). Nothing is written.

The exit code is 0 if there are no errors, 1 otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from keras_tracin.check import check
from keras_tracin.scripts import _flags
from keras_tracin.scripts._job import open_job
from keras_tracin.scripts._program import FAILURE, SUCCESS, Program


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("check", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_run(values, "The run")
    flags.DEFINE_integer(
        "max_examples",
        10_000,
        "Number of examples to read from each data set; 0 for all.",
        lower_bound=0,
        flag_values=values,
        module_name=_flags.TASK,
    )
    _flags.define_quiet(values)


def _work(values: flags.FlagValues) -> int:
    with open_job(values, compare=False) as job:
        report = check(
            job.model,
            job.task.train(),
            job.run,
            job.task.test() if job.task.has("test") else None,
            max_examples=values.max_examples or None,
            verbose=job.verbose,
            **job.options(
                "loss", "class_weight", "layers", "strategy", "memory_limit"
            ),
        )
    return SUCCESS if report.ok else FAILURE


if __name__ == "__main__":
    sys.exit(main())
