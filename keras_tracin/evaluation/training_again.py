"""What every comparison with real trainings needs: data, and queries' values.

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
from keras_tracin.losses.query_losses import query_value
from keras_tracin.models.state import preserved

_BATCH = 1024  # examples read or evaluated at a time


@dataclasses.dataclass(frozen=True)
class Data:
    """All examples of some data, in memory.

    Attributes:
        ids: `[n]`.
        arrays: `(x, y[, sample_weight])`, with leaves `[n, ...]`.
        digest: of ids and arrays.
    """

    ids: np.ndarray
    arrays: Any
    digest: str

    def rows(self, chosen: np.ndarray | slice) -> Any:
        """`(x, y[, sample_weight])` of some examples."""
        return tf.nest.map_structure(lambda leaf: leaf[chosen], self.arrays)


def read_whole(data: Any, name: str, model: keras.Model | None = None) -> Data:
    """Reads data into memory.

    Args:
        data: what `model.fit` takes.
        name: what errors call it.
        model: to read them as its `fit` sees them; by default as they are,
            also without labels.
    """
    if model is None:  # to be given to `fit`, perhaps without labels
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
    """What is measured of each query, `[m]` in float64; lower is better.

    Args:
        model: a built model.
        test: the queries.
        query_loss: what is measured of them.
        loss: used in place of the compiled loss.
        sample: more queries, to tell what the model's outputs are; `test`
            by default.
    """
    queries = open_for_model(model, test, "test")
    more = queries if sample is None else open_for_model(model, sample, "test")
    with preserved(model):
        measure = query_value(model, query_loss, loss, more.first(SAMPLE).x)
        found = [
            measure(b.y, model(b.x, training=False), b.sample_weight)
            for b in queries.batches(_BATCH)
        ]
    return np.concatenate(found).astype(np.float64)


def check_same(what: str, scored: np.ndarray, given: np.ndarray) -> None:
    """Raises ValueError unless scores are of the examples that are given."""
    if not np.array_equal(scored, given):
        raise ValueError(
            f"`scores` should be of these {what}, in the same order. Received "
            f"scores of {len(scored)} and data of {len(given)}, whose ids "
            "differ. Score the data that is given here."
        )
