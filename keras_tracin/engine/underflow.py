"""Scores that are zero because float32 has no smaller numbers.

Synopsis:

    if nearly_zero(scores) or vanishes(model, variables, sides):
        warnings.warn(MESSAGE)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Products below 2**-126 are lost from a sum, which is off by as much as there
# are: a sum above this has most of its digits.
_SMALLEST = 2.0**-110

MESSAGE = (
    "Scores underflow float32: gradients are so small that their products are "
    "0 or lose their digits, so that scores cannot be ranked. Scale the loss "
    "up, by `loss=lambda y, p: 1e12 * own_loss(y, p)` for example: scores grow "
    "by its square. (At weights where all losses are this small, training has "
    "nothing more to learn; earlier checkpoints say more.)"
)


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
        variables: those that the gradients are by.
        sides: two pairs of a loss and the data `(x, y[, weight])` of one
            example.
        rate: what the product is multiplied with.
    """
    gradients = []
    for loss, (x, y, *weight) in sides:
        with tf.GradientTape() as tape:
            y_pred = model(x, training=False)
            value = tf.reduce_sum(
                loss(y, y_pred, weight[0] if weight else None)
            )
        found = tape.gradient(
            value,
            [variable.value for variable in variables],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        dense = [tf.convert_to_tensor(gradient) for gradient in found]
        gradients.append([tf.cast(g, tf.float64).numpy() for g in dense])
    product = sum(np.vdot(a, b) for a, b in zip(*gradients, strict=True))
    return bool(0 < abs(product) * min(1.0, abs(rate)) < _SMALLEST)
