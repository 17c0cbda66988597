"""The given labels of the examples that a result names, for its table.

Synopsis:

    labels = result_labels(job, queries=True)
    labels.columns("train", [7, 2])      # {"train_label": ["3", "0"], ...}
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.labels import label_values
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.scripts._job import Job

_BATCH = 256
_MOST = 64  # values of a label; larger ones, as images, are left out


@dataclasses.dataclass(frozen=True)
class ResultLabels:
    """Labels of examples, and the names of classes.

    Attributes:
        given: labels by id, of "train" and "query".
        names: names of the classes 0, 1, …, or None.
    """

    given: Mapping[str, Mapping[Any, Any]]
    names: Sequence[str] | None = None

    def columns(self, side: str, ids: Sequence[Any]) -> dict[str, list[str]]:
        """Columns of the labels of some examples, and of their classes' names.

        Args:
            side: "train" or "query".
            ids: ids of the examples.
        """
        labels = self.given.get(side)
        if labels is None:
            return {}
        # The sum over queries has no label.
        values = [labels.get(name, "") for name in ids]
        columns = {f"{side}_label": [_text(value) for value in values]}
        named = self.named(values)
        return columns | ({} if named is None else {f"{side}_name": named})

    def named(self, values: Sequence[Any]) -> list[str] | None:
        """The names of classes; None if there are none."""
        names = self.names
        if names is None:
            return None
        return [
            str(names[value])
            if isinstance(value, int) and 0 <= value < len(names)
            else ""
            for value in values
        ]


def result_labels(
    job: Job, queries: bool = False, train: bool = True
) -> ResultLabels:
    """Reads the labels of a job's examples.

    Args:
        job: the job.
        queries: whether to read those of the queries.
        train: whether to read those of the training examples.
    """
    data = {"train": job.task.train} if train else {}
    if queries:
        data["query"] = job.queries
    given = {side: _read(job, make()) for side, make in data.items()}
    names = job.task.option("class_names")
    is_list = isinstance(names, Sequence) and not isinstance(names, str)
    return ResultLabels(
        {side: labels for side, labels in given.items() if labels is not None},
        names if is_list else None,
    )


def _read(job: Job, data: Any) -> dict[Any, Any] | None:
    """Labels by id; None where they are of many values."""
    ids: list[Any] = []
    labels: list[Any] = []
    examples = open_for_model(job.model, data)
    examples.pad(lambda short, padded: True)  # labels alone are read
    for batch in examples.batches(_BATCH):
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(batch.y)]
        if sum(math.prod(leaf.shape[1:]) for leaf in leaves) > _MOST:
            return None
        ids += batch.ids.tolist()
        labels.append(tf.nest.map_structure(np.asarray, batch.y))
    whole = tf.nest.map_structure(lambda *y: np.concatenate(y), *labels)
    return dict(zip(ids, label_values(whole).tolist(), strict=True))


def _text(value: Any) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value)
