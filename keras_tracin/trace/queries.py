"""The queries of a trace, all of which are held in memory.

Synopsis:

    query = read_queries(model, test, "test")
    query.ids, query.data
"""

from __future__ import annotations

from typing import Any

import keras

from keras_tracin.data.batches import Batch, join
from keras_tracin.engine.padding import open_padded
from keras_tracin.losses.per_example import per_example_loss

_READ = 100_000  # examples at a time


def read_queries(model: keras.Model, queries: Any, name: str) -> Batch:
    """All queries, those of several lengths padded to the longest.

    Args:
        model: the compiled model.
        queries: the queries, as `fit` takes them.
        name: name of the data, for errors.

    Raises:
        ValueError: as `open_padded`.
    """
    examples = open_padded(model, queries, name, per_example_loss(model))
    return join(list(examples.batches(_READ)))
