"""Data in memory and values of queries, for comparisons with retraining.

Synopsis:

    data = read_whole(train, "train")
    model = fit(data.rows(keep))
    values = query_values(model, test, query_loss="loss", loss=None)  # [m]
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import content_digest
from keras_tracin.data.examples import open_examples
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.output_statistics import output_statistics
from keras_tracin.losses.query_losses import query_value
from keras_tracin.models.state import preserved

_BATCH = 1024  # examples read or evaluated at a time


@dataclasses.dataclass(frozen=True)
class Data:
    """A data set in memory.

    Attributes:
        ids: ids `[n]`.
        arrays: `(x, y[, sample_weight])`, with leaves `[n, ...]`.
        digest: digest of ids and arrays.
    """

    ids: np.ndarray
    arrays: Any
    digest: str

    def rows(self, index: np.ndarray | slice) -> Any:
        """`(x, y[, sample_weight])` of a subset of the examples."""
        return tf.nest.map_structure(lambda leaf: leaf[index], self.arrays)


def read_whole(data: Any, name: str, model: keras.Model | None = None) -> Data:
    """Reads data into memory.

    Args:
        data: data in a form that `model.fit` takes.
        name: name of the data in errors.
        model: model whose preprocessing is applied; by default data is read
            as it is, and may have no labels.
    """
    if model is None:  # for `fit`; there may be no labels
        examples = open_examples(data, name, labels=False)
    else:
        examples = open_for_model(model, data, name)
    batches = list(examples.batches(_BATCH))
    arrays = tf.nest.map_structure(
        lambda *leaves: np.concatenate(leaves),
        *(batch.data for batch in batches),
    )
    ids = np.concatenate([batch.ids for batch in batches])
    return Data(ids, arrays, content_digest(batches))


def query_values(
    model: keras.Model,
    test: Any,
    query_loss: Any,
    loss: Any,
    sample: Any = None,
) -> np.ndarray:
    """Values of queries, float64 `[m]`; lower is better.

    Args:
        model: a built model.
        test: the queries.
        query_loss: quantity to measure, as in `TracIn`.
        loss: loss to use in place of the compiled one.
        sample: examples by which to determine whether outputs are logits or
            probabilities; `test` by default.
    """
    queries = open_for_model(model, test, "test")
    examples = (
        queries if sample is None else open_for_model(model, sample, "test")
    )
    with preserved(model):
        measure = query_value(model, query_loss, loss, examples.first(SAMPLE).x)
        values = [
            measure(b.y, model(b.x, training=False), b.sample_weight)
            for b in queries.batches(_BATCH)
        ]
    return np.concatenate(values).astype(np.float64)


def shares_correct(model: keras.Model, test: Any, loss: Any) -> np.ndarray:
    """The share of each example's labels that are predicted, `[m]`.

    Args:
        model: a built model.
        test: the examples.
        loss: loss to use in place of the compiled one.

    Raises:
        ValueError: if labels are numbers to predict.
    """
    queries = open_for_model(model, test, "test")
    with preserved(model):
        sample = queries.first(SAMPLE)
        statistics = output_statistics(model, sample.x, sample.y, loss)
        if "correct" not in statistics.names:
            raise ValueError(
                "Accuracy is of labels that are predicted rightly or not. "
                f"Received: the model '{model.name}', a regression. Choose "
                "`metric='loss'` or a function."
            )
        at = statistics.names.index("correct")
        values = [
            statistics(b.y, model(b.x, training=False), b.sample_weight)[at]
            for b in queries.batches(_BATCH)
        ]
    return np.concatenate(values).astype(np.float64)


def check_same(what: str, scored: np.ndarray, ids: np.ndarray) -> None:
    """Raises ValueError unless the ids of scores and of data are equal."""
    if not np.array_equal(scored, ids):
        raise ValueError(
            f"`scores` should be of these {what}, in the same order. Received "
            f"scores of {len(scored)} and data of {len(ids)}, whose ids "
            "differ. Score the data that is given here."
        )
