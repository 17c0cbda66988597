"""Differences of results that rounding alone explains.

Synopsis:

    if error > tolerance_of(model) * scale:
        ...
    is_learnt(model, loss, batch.data, [3])   # gradients are but rounding
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.capture import PerExampleLoss
from keras_tracin.gradients.interaction import rounding

# A difference of lengths, or of gradients, in units of `rounding`: twice what
# that of a result may be, in a sum of many of them. Of half precision, less:
# what rounding does there is measured.
_UNITS, _UNITS_OF_HALF = 10.0, 3.0
_HALF = 2.0**-6  # of `rounding`, from which on a model is in half precision
NOISE = 6.0  # largest error, as a multiple of what rounding does
_LEARNT = 16.0  # units in the last place of a loss, below which it is zero


def tolerance_of(model: keras.Model) -> float:
    """The share of its length by which rounding may change a gradient."""
    unit = rounding(model)
    return (_UNITS if unit < _HALF else _UNITS_OF_HALF) * unit


def is_learnt(
    model: keras.Model, loss: PerExampleLoss, data: Any, rows: Sequence[int]
) -> bool:
    """Whether losses are so near to zero that gradients are but rounding.

    A probability of 1 has a gradient of 0, the next one below has another.

    Args:
        model: the model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        data: `(x, y[, sample_weight])` of a batch.
        rows: the examples in question: alone and in the batch.
    """
    limit = _LEARNT * rounding(model) ** 2

    def losses(index: Sequence[int]) -> np.ndarray:
        x, y, *weight = tf.nest.map_structure(
            lambda leaf: tf.gather(tf.convert_to_tensor(leaf), index), data
        )
        y_pred = model(x, training=False)
        return np.abs(loss(y, y_pred, weight[0] if weight else None))

    count = len(tf.nest.flatten(data)[0])
    within = losses(range(count))[list(rows)]
    return bool(
        (within <= limit).all()
        and all(losses([row])[0] <= limit for row in rows)
    )
