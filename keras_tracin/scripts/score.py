"""Scores training examples for queries: which helped a prediction, which hurt.

    keras_tracin-score --task=digits_task --output=scores.npz
    keras_tracin-score --task=digits_task --k=10 --output=top.csv
    keras_tracin-score --task=digits_task --queries=3,17 --k=5 | head

A positive score marks a proponent: training on the example lowered the query's
loss. A negative one marks an opponent. (For representer points: it raised or
lowered the logit of --target.)

With --k, the output is a table of each query's strongest proponents and
opponents: query_id, side, rank, train_id, score, query_label, train_label; and
query_name, train_name where classes have names. Without it, the output has a
row for each query with the scores of all training examples. `kt.TopK.load` and
`kt.Attribution.load` read .npz files. Without --output, CSV goes to standard
output.

With --directory, an interrupted command continues where it stopped, and the
processes of a cluster (TF_CONFIG) share the work.

Influence functions, TRAK and representer points of the same run:

    keras_tracin-score --task=digits_task --method=influence --damping=0.01
    keras_tracin-score --task=digits_task --method=trak --output=trak.npz
    keras_tracin-score --task=digits_task --method=representer --k=5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from keras_tracin.results import Attribution, TopK
from keras_tracin.scripts import _flags
from keras_tracin.scripts._job import Job, open_job
from keras_tracin.scripts._labels import result_labels
from keras_tracin.scripts._methods import create_method
from keras_tracin.scripts._output import Output
from keras_tracin.scripts._program import SUCCESS, Program, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("score", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_queries(values, k=None)
    _flags.define_method(values)
    flags.DEFINE_bool(
        "aggregate",
        False,
        "Score the sum over all queries: one row, in the time of one query.",
        flag_values=values,
        module_name=_flags.TRACIN,
    )
    _flags.define_target(values)
    _flags.define_output(values, ".npz or .csv file for the scores.")
    _flags.define_directory(values)


def _work(values: flags.FlagValues) -> int:
    output = Output.from_flags(values)
    if values.aggregate and values.directory:
        raise UsageError("--aggregate makes one row: leave out --directory.")
    with open_job(values) as job:
        scores = _score(job)
        ranked = output.is_table and isinstance(scores, TopK)
        labels = result_labels(job, queries=True) if ranked else None
        output.write(scores, labels)
        if not values.quiet:
            print(f"{_describe(scores)} are in {output.path}.")
    return SUCCESS


def _score(job: Job) -> Attribution | TopK:
    values, queries, method = job.values, job.queries(), create_method(job)
    if values.k is not None and not values.aggregate:
        return method.top_k(queries, values.k, **job.call_options("top_k"))
    options = job.call_options("influence")
    if values.aggregate:
        options["aggregate"] = True
    scores = method.influence(queries, **options)
    return scores if values.k is None else scores.top_k(values.k)


def _describe(result: Attribution | TopK) -> str:
    if isinstance(result, TopK):
        k = result.proponents.ids.shape[1]
        return f"{k} proponents and {k} opponents of {len(result):,} queries"
    m, n = result.scores.shape
    return f"Scores of {n:,} training examples for {m:,} queries"


if __name__ == "__main__":
    sys.exit(main())
