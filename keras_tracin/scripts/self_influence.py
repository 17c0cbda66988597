"""Ranks training examples by self-influence: wrong labels come first.

    keras_tracin-self_influence --task=digits_task --output=suspicious.csv
    keras_tracin-self_influence --task=digits_task | head -20

An example's influence on its own loss is large if the rest of the data does not
explain it: it is rare, or its label is wrong. A .csv file has the
columns rank, train_id, self_influence and train_label, the largest first, and
train_name where classes have names; a .npz file, which `kt.SelfInfluence.load`
reads, is in reading order. Without --output, CSV goes to standard output.

The training loss also finds labels that are wrong at random: compare the two.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from absl import flags

from keras_tracin.scripts import _flags
from keras_tracin.scripts._job import open_job
from keras_tracin.scripts._labels import result_labels
from keras_tracin.scripts._methods import create_method
from keras_tracin.scripts._output import Output
from keras_tracin.scripts._program import SUCCESS, Program


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("self_influence", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_method(values)
    _flags.define_output(values, ".npz or .csv file for the ranking.")
    _flags.define_directory(values)


def _work(values: flags.FlagValues) -> int:
    output = Output.from_flags(values)
    with open_job(values) as job:
        options = job.call_options("self_influence")
        scores = create_method(job).self_influence(**options)
        labels = result_labels(job) if output.is_table else None
        output.write(scores, labels)
        if not values.quiet:
            print(
                f"Self-influence of {len(scores):,} training examples is in "
                f"{output.path}."
            )
    return SUCCESS


if __name__ == "__main__":
    sys.exit(main())
