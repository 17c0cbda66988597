"""Scores training examples for queries: which helped a prediction, which hurt.

    keras_tracin-score --task=digits_task --output=scores.npz
    keras_tracin-score --task=digits_task --k=10 --output=top.csv
    keras_tracin-score --task=digits_task --queries=3,17 --k=5 | head

A positive score marks a proponent: training on the example lowered the query's
loss. A negative one marks an opponent. (Representer points: it raises the
logit of --target, or lowers it.)

With --k, a table of each query's strongest proponents and opponents: query_id,
side, rank, train_id, score. Without, every training example's score, with a
row for each query. Read a .npz file by `kt.TopK.load` or
`kt.Attribution.load`. Without --output, CSV goes to standard output.

Work that takes long goes on from where it was killed if --directory is given;
processes of one cluster (TF_CONFIG) that share it share the work.

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
from keras_tracin.scripts._job import Job, opened
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
        "One row: the sum over all queries, in the time of one.",
        flag_values=values,
        module_name=_flags.TRACIN,
    )
    _flags.define_target(values)
    _flags.define_output(values, "A .npz or .csv file for the scores.")
    _flags.define_directory(values)


def _work(values: flags.FlagValues) -> int:
    output = Output.of(values)
    if values.aggregate and values.directory:
        raise UsageError("--aggregate makes one row: leave out --directory.")
    with opened(values) as job:
        found = _scores(job)
        output.write(found)
        if not values.quiet:
            print(f"{_told(found)} are in {output.path}.")
    return SUCCESS


def _scores(job: Job) -> Attribution | TopK:
    values, queries, method = job.values, job.queries(), job.method()
    if values.k is not None and not values.aggregate:
        return method.top_k(queries, values.k, **job.call_options("top_k"))
    options = job.call_options("influence")
    if values.aggregate:
        options["aggregate"] = True
    scores = method.influence(queries, **options)
    return scores if values.k is None else scores.top_k(values.k)


def _told(found: Attribution | TopK) -> str:
    if isinstance(found, TopK):
        k = found.proponents.ids.shape[1]
        return f"{k} proponents and {k} opponents of {len(found):,} queries"
    m, n = found.scores.shape
    return f"Scores of {n:,} training examples for {m:,} queries"


if __name__ == "__main__":
    sys.exit(main())
