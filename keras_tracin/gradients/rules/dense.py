"""Dense layers: the gradient of `W` is `Σ_t x_t δ_tᵀ`.

See Pruthi et al. (2020), section F.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import OuterFactors
from keras_tracin.gradients.rules import low_rank
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    register,
    watch_before_activation,
)


@register(
    keras.layers.Dense,
    variables=low_rank.KERNEL,
    watching=watch_before_activation,
)
def dense(layer: keras.layers.Dense, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.Dense`, on inputs of rank two or more.

    A batch of two sequences of three positions, `x [2, 3, i]`, gives inputs
    `[2, 3, i]` and grads `[2, 3, units]`; a batch of two vectors, `x [2, i]`,
    is the same with one position: `[2, 1, i]` and `[2, 1, units]`.
    """
    inputs = by_position(
        tf.cast(use.inputs, use.grad.dtype)
    )  # inputs may be integers
    factors = OuterFactors(inputs, by_position(use.grad), layer.use_bias)
    return low_rank.of_kernel(layer, factors)


def by_position(tensor: tf.Tensor) -> tf.Tensor:
    """`[n, ..., c]` as `[n, t, c]`, with `t = 1` where there is no `...`."""
    *positions, channels = tensor.shape[1:]
    if len(positions) == 1:
        return tensor
    if None in positions:
        return tf.reshape(tensor, [tf.shape(tensor)[0], -1, channels])
    return tf.reshape(tensor, [-1, math.prod(positions), channels])
