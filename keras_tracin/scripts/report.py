"""Writes an HTML page for browsing queries and reviewing suspected labels.

    keras_tracin-report --task=digits_task --output=digits.html
    keras_tracin-report --task=digits_task --output=digits.html --k=5 \\
        --queries=3,17 --title="Two digits"

The page shows each of the task's queries with its strongest proponents
(positive scores: training on them lowered its loss) and opponents, and the
training examples of highest self-influence one by one, to be marked as right or
wrong; the marks are exported as CSV. It is one file that works without a
network. If the task has no `test()`, the page has no queries.

Examples are shown as the model takes them, unless the task has `shown_train()`
or `shown_test()`: the same examples, with the same ids, in readable form, such
as texts in place of tokens. A task's `class_names` and `feature_names` are used
as well.

The program needs the `report` extra: pip install "keras_tracin[report]".
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.methods.attributor import Attributor
from keras_tracin.report import write_html
from keras_tracin.results import SelfInfluence, TopK
from keras_tracin.scripts import _flags
from keras_tracin.scripts._job import Job, open_job
from keras_tracin.scripts._methods import create_method
from keras_tracin.scripts._output import output_path
from keras_tracin.scripts._program import SUCCESS, Program

_BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    return Program("report", __doc__ or "", _define, _work).main(argv)


def _define(values: flags.FlagValues) -> None:
    _flags.define_task(values)
    _flags.define_queries(values, k=8)
    _flags.define_method(values)
    _flags.define_target(values)
    _flags.define_output(values, ".html file for the page.", required=True)
    options: dict[str, Any] = {
        "flag_values": values,
        "module_name": _flags.OUTPUT,
    }
    flags.DEFINE_string(
        "title", "Training data attribution", "Title of the page.", **options
    )
    flags.DEFINE_integer(
        "max_suspects",
        1000,
        "Number of examples of highest self-influence to list; 0 for none, "
        "which also saves computing self-influence.",
        lower_bound=0,
        **options,
    )
    _flags.define_directory(values)


def _work(values: flags.FlagValues) -> int:
    path = output_path(values, (".html",))
    # The page shows predictions at the final weights.
    with open_job(values, at_end=True) as job:
        method = create_method(job)
        top, suspects = _queries(job, method), _suspects(job, method)
        write_html(
            path,
            train=job.task.shown("train"),
            test=None if top is None else job.task.shown("test"),
            top_k=top,
            self_influence=suspects,
            max_suspects=max(1, values.max_suspects),
            title=values.title,
            class_names=job.task.option("class_names"),
            feature_names=job.task.option("feature_names"),
            train_predictions=_predictions(job, job.task.train()),
            test_predictions=(
                None if top is None else _predictions(job, job.task.test())
            ),
            overwrite=values.overwrite,
        )
        if not values.quiet:
            print(f"The page is {path}.")
    return SUCCESS


def _queries(job: Job, method: Attributor) -> TopK | None:
    if not job.task.has("test"):
        return None
    options = job.call_options("top_k")
    return method.top_k(job.queries(), job.values.k, **options)


def _suspects(job: Job, method: Attributor) -> SelfInfluence | None:
    if not job.values.max_suspects:
        return None
    return method.self_influence(**job.call_options("self_influence"))


def _predictions(job: Job, data: Any) -> dict[Any, np.ndarray] | None:
    """Predictions by example id; None for a model of several outputs."""
    predictions: dict[Any, np.ndarray] = {}
    examples = open_for_model(job.model, data)
    examples.pad(lambda short, padded: True)  # as the method, which checks it
    for batch in examples.batches(_BATCH):
        outputs = job.model(batch.x, training=False)
        if isinstance(outputs, (dict, list, tuple)) or len(outputs.shape) > 2:
            return None
        predictions.update(
            zip(batch.ids.tolist(), np.asarray(outputs), strict=True)
        )
    return predictions


if __name__ == "__main__":
    sys.exit(main())
