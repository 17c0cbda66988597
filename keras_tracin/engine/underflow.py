"""Scores that are zero because float32 has no smaller numbers.

Synopsis:

    watch = UnderflowWatch(engine, queries, call)
    watch.look(scores, batch, rate)      # warns, once in a call
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.call import Call
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.queries import Queries

# Products below 2**-126 are lost from a sum, which is wrong by their number
# times that: a sum above this has most of its digits.
_SMALLEST = 2.0**-110

MESSAGE = (
    "Scores underflow float32: gradients are so small that their products are "
    "0 or lose their digits, so that scores cannot be ranked. Scale the loss "
    "up, by `loss=lambda y, p: 1e12 * own_loss(y, p)` for example: scores grow "
    "by its square. (At weights where all losses are this small, training has "
    "nothing more to learn; earlier checkpoints say more.)"
)


class UnderflowWatch:
    """Warns, once in a call, of scores that float32 is too coarse for.

    Args:
        engine: the model and its losses.
        queries: the queries that are scored, if any.
        call: the call that gives the warning.
    """

    def __init__(self, engine: Engine, queries: Queries | None, call: Call):
        self._engine, self._queries, self._call = engine, queries, call
        self._recomputed = False

    def look(self, scores: np.ndarray, batch: Batch, rate: float) -> None:
        """Looks at the scores `[n]` or `[m, ..., n]` of a batch.

        Args:
            scores: the scores at one checkpoint, of each query.
            batch: the training examples.
            rate: the factor of the checkpoint.
        """
        if "underflow" in self._call.warned:
            return
        underflow = nearly_zero(scores)
        rows = scores.reshape(len(scores) if scores.ndim > 1 else 1, -1)
        zero = np.flatnonzero(~rows.any(axis=1))
        projects = self._engine.projection is not None
        if len(zero) and not self._recomputed and not projects:
            self._recomputed = True
            underflow = underflow or self._vanishes(int(zero[0]), batch, rate)
        if underflow:
            self._call.warn("underflow", MESSAGE)

    def _vanishes(self, row: int, batch: Batch, rate: float) -> bool:
        """Whether a score in this row is 0 for want of smaller numbers."""
        engine = self._engine
        own = other = (engine.loss, _example(batch, 0))
        if self._queries is not None:
            for block in self._queries.batches:
                if row < len(block):
                    break
                row -= len(block)
            other = (engine.query_value, _example(block, row))
        groups = engine.train_steps.variables
        variables = [v for group in groups for v in group]
        return vanishes(engine.model, variables, (own, other), rate)


def _example(batch: Batch, row: int) -> Any:
    """The data of one example of a batch."""
    return tf.nest.map_structure(lambda leaf: leaf[row : row + 1], batch.data)


def nearly_zero(scores: np.ndarray) -> bool:
    """Whether scores are not 0, but too small for float32 to hold them."""
    largest = max(scores.max(initial=0), -scores.min(initial=0))
    return bool(0 < largest < _SMALLEST)


def vanishes(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    sides: Sequence[tuple[Callable[..., tf.Tensor], Any]],
    rate: float,
) -> bool:
    """Whether a product of gradients is 0 in float32 but not in float64.

    Args:
        model: the model, with the weights of the scores.
        variables: the variables that gradients are taken by.
        sides: two pairs of a loss and the data `(x, y[, weight])` of one
            example.
        rate: the factor of the product.
    """
    gradients = []
    for loss, (x, y, *weight) in sides:
        with tf.GradientTape() as tape:
            y_pred = model(x, training=False)
            value = tf.reduce_sum(
                loss(y, y_pred, weight[0] if weight else None)
            )
        gradient = tape.gradient(
            value,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        dense = map(tf.convert_to_tensor, gradient)
        gradients.append([tf.cast(g, tf.float64).numpy() for g in dense])
    product = sum(np.vdot(a, b) for a, b in zip(*gradients, strict=True))
    return bool(0 < abs(product) * min(1.0, abs(rate)) < _SMALLEST)
