"""Asks an index which training examples helped or hurt a prediction.

    keras_tracin-query --task=digits_task --index=index/digits --k=10
    keras_tracin-query --task=digits_task --index=index/digits \\
        --queries=3,17 --rerank=100 --output=top.csv

Prints, or writes, each query's strongest proponents (positive scores: training
on them lowered its loss) and opponents: query_id, side, rank, train_id, score.
Scores are estimates from sketches; with --rerank the best candidates are scored
again, exactly, for which the training data are read.

The index comes from `keras_tracin-index`. One query takes milliseconds, but
starting a program takes seconds: a service keeps a `kt.InfluenceIndex` open.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from keras_tracin.index import InfluenceIndex
from keras_tracin.methods.indexable import Indexable
from keras_tracin.results.attribution import TopK
from keras_tracin.scripts import _flags
from keras_tracin.scripts._job import Job, opened
from keras_tracin.scripts._output import Output
from keras_tracin.scripts._program import SUCCESS, Program, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("query", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_queries(values, k=10)
    here: dict[str, Any] = {"flag_values": values, "module_name": _flags.INDEX}
    flags.DEFINE_string(
        "index", None, "The directory of the index.", required=True, **here
    )
    flags.DEFINE_integer(
        "rerank",
        0,
        "Number of candidates of each side, at least k, that are scored "
        "exactly. The run, its checkpoints and --layers have to be those of "
        "the index.",
        lower_bound=0,
        **here,
    )
    _flags.define_method(values)
    _flags.define_output(values, "A .npz or .csv file for the answers.")


def _work(values: flags.FlagValues) -> int:
    output = Output.of(values)
    if 0 < values.rerank < values.k:
        raise UsageError(
            f"--rerank should be 0 or at least k. Received: {values.rerank} "
            f"with --k={values.k}."
        )
    # An index of influence functions asks for the weights of the end.
    with opened(values, at_end=True) as job:
        answers = _answers(job)
        output.write(answers)
        if not values.quiet:
            count = len(answers)
            print(f"Answers to {count:,} queries are in {output.path}.")
    return SUCCESS


def _answers(job: Job) -> TopK:
    values = job.values
    # The index holds how its rows were made, but for a loss of the user's.
    needs_method = values.rerank or job.task.option("loss") is not None
    moved = job.run if values["run"].present else None
    index = InfluenceIndex(
        values.index,
        job.model,
        method=_method(job) if needs_method else None,
        run=moved,
    )
    return index.query(job.queries(), values.k, rerank=values.rerank)


def _method(job: Job) -> Indexable:
    method = job.method(projected=False)
    if not isinstance(method, Indexable):
        raise UsageError(f"There is no index of --method={job.values.method}.")
    return method


if __name__ == "__main__":
    sys.exit(main())
