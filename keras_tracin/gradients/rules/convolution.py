"""Convolutions and transposed convolutions: Dense layers applied to patches."""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, OuterFactors
from keras_tracin.gradients.rules import low_rank
from keras_tracin.gradients.rules.dense import by_position
from keras_tracin.gradients.rules.patches import channels_last, kernel_factors
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    register,
    watch_before_activation,
)


@register(
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    variables=low_rank.KERNEL,
    watching=watch_before_activation,
)
def convolution(layer, use: LayerUse) -> list[Part]:
    """The rule of `Conv1D`, `Conv2D` and `Conv3D`."""
    inputs, grads = sides(layer, use)
    kernel = kernel_factors(inputs, grads, layer, layer.groups)
    if layer.use_bias:
        if isinstance(kernel, OuterFactors):
            kernel = dataclasses.replace(kernel, bias=True)
        else:
            parts = (*kernel.parts, bias_gradients(grads))
            kernel = DenseGradients(parts, kernel.outputs)
    return low_rank.of_kernel(layer, kernel)


@register(
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    watching=watch_before_activation,
)
def transposed_convolution(layer, use: LayerUse) -> list[Part]:
    """The rule of `Conv1DTranspose`, `Conv2DTranspose`, `Conv3DTranspose`.

    The layer is a convolution run backwards, from its output to its input. So
    the two sides change places: patches of the output's gradient,
    `[n, 36, 9·filters]`, with inputs `[n, 36, channels]`; and the kernel has
    filters first.
    """
    inputs, grads = sides(layer, use)
    parts: list[Part] = [
        ((layer.kernel,), kernel_factors(grads, inputs, layer))
    ]
    if layer.use_bias:
        bias = DenseGradients((bias_gradients(grads),))
        parts.append(((layer.bias,), bias))
    return parts


def sides(layer, use: LayerUse) -> tuple[tf.Tensor, tf.Tensor]:
    """Inputs and output gradients, both with channels last."""
    inputs, grads = tf.convert_to_tensor(use.inputs), use.grad
    if layer.data_format == "channels_first":
        return channels_last(inputs), channels_last(grads)
    return inputs, grads


def bias_gradients(grads: tf.Tensor) -> tf.Tensor:
    """Gradients of a bias, `[n, o]`, from `[n, *positions, o]`."""
    return tf.reduce_sum(by_position(grads), axis=1)
