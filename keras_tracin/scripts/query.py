"""Searches an index for training examples that helped or hurt a prediction.

    keras_tracin-query --task=digits_task --index=index/digits --k=10
    keras_tracin-query --task=digits_task --index=index/digits \\
        --queries=3,17 --rerank=100 --output=top.csv

Prints, or writes, each query's strongest proponents (positive scores: training
on them lowered its loss) and opponents: query_id, side, rank, train_id, score,
and labels with the names of their classes. Those of training examples are read
from the training data: with --data, or --rerank.
Scores are estimates from sketches; with --rerank the best candidates are scored
again, exactly, which reads the training data.

The index comes from `keras_tracin-index`. One query takes milliseconds, but
starting a program takes seconds: a service should keep a `kt.InfluenceIndex`
open.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from keras_tracin.index import InfluenceIndex
from keras_tracin.results import TopK
from keras_tracin.scripts import _flags
from keras_tracin.scripts._files_task import FilesTask
from keras_tracin.scripts._job import Job, check_indexed, open_job
from keras_tracin.scripts._labels import ResultLabels, result_labels
from keras_tracin.scripts._methods import create_method
from keras_tracin.scripts._output import Output
from keras_tracin.scripts._program import SUCCESS, Program, UsageError
from keras_tracin.scripts._reading import adopt_reading


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("query", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_queries(values, k=10)
    options: dict[str, Any] = {
        "flag_values": values,
        "module_name": _flags.INDEX,
    }
    flags.DEFINE_string(
        "index", None, "Directory of the index.", required=True, **options
    )
    flags.DEFINE_integer(
        "rerank",
        0,
        "Number of candidates on each side, at least k, to score again "
        "exactly. The run, its checkpoints and --layers must be those of the "
        "index.",
        lower_bound=0,
        **options,
    )
    _flags.define_method(values)
    _flags.define_output(values, ".npz or .csv file for the answers.")


def _work(values: flags.FlagValues) -> int:
    output = Output.from_flags(values)
    if 0 < values.rerank < values.k:
        raise UsageError(
            f"--rerank should be 0 or at least k. Received: {values.rerank} "
            f"with --k={values.k}."
        )
    check_indexed(values.method)
    reading = adopt_reading(values, values.index)
    # An index of influence functions needs the final weights.
    with open_job(values, at_end=True) as job:
        if reading is not None and isinstance(job.task, FilesTask):
            reading.check(job.task.reading)
        answers = _answer(job)
        labels = _labels(job) if output.is_table else None
        output.write(answers, labels)
        if not values.quiet:
            print(f"Answers to {len(answers):,} queries are in {output.path}.")
    return SUCCESS


def _answer(job: Job) -> TopK:
    values = job.values
    # The index records how its rows were made, except for a custom loss.
    needs_method = values.rerank or job.task.option("loss") is not None
    run = job.run if values["run"].present else None
    method: Any = create_method(job, indexed=True) if needs_method else None
    index = InfluenceIndex(
        values.index,
        job.model,
        method=method,
        run=run,
    )
    return index.query(job.queries(), values.k, rerank=values.rerank)


def _labels(job: Job) -> ResultLabels:
    """Labels of queries; of training examples where these are read anyway."""
    return result_labels(
        job,
        queries=True,
        train=bool(job.values.rerank or job.values.data is not None),
    )


if __name__ == "__main__":
    sys.exit(main())
