"""Depthwise convolutions, and separable ones, which have two kernels.

A depthwise kernel has few entries, so its gradients are materialized: for each
tap, the input as seen by the tap times the output's gradient, summed over
positions.
"""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, OuterFactors
from keras_tracin.gradients.rules.convolution import bias_gradients, sides
from keras_tracin.gradients.rules.dense import by_position
from keras_tracin.gradients.rules.patches import pad, padding_of, tap_slices
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    register,
    watch_before_activation,
)


@register(
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    watching=watch_before_activation,
)
def depthwise_convolution(layer, use: LayerUse) -> list[Part]:
    """The rule of `DepthwiseConv1D` and `DepthwiseConv2D`."""
    inputs, grads = sides(layer, use)
    gradients = [_depthwise(inputs, grads, layer)]
    if layer.use_bias:
        gradients.append(bias_gradients(grads))
    variables = (layer.kernel, layer.bias)[: 1 + layer.use_bias]
    return [(variables, DenseGradients(tuple(gradients)))]


@register(
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
    variables=("depthwise_kernel", "pointwise_kernel", "bias"),
    watching=watch_before_activation,
)
def separable_convolution(layer, use: LayerUse) -> list[Part]:
    """The rule of `SeparableConv1D` and `SeparableConv2D`.

    The output of the depthwise kernel is computed again: it is the input of the
    pointwise kernel, which is a Dense layer.
    """
    inputs, grads = sides(layer, use)
    depthwise, pointwise = (
        tf.cast(tf.convert_to_tensor(kernel), inputs.dtype)
        for kernel in (layer.depthwise_kernel, layer.pointwise_kernel)
    )
    hidden = keras.ops.depthwise_conv(
        inputs,
        depthwise,
        strides=layer.strides,
        padding=layer.padding,
        data_format="channels_last",
        dilation_rate=layer.dilation_rate,
    )
    pointwise = tf.reshape(pointwise, pointwise.shape[-2:])
    between = tf.einsum("...o,io->...i", grads, pointwise)
    outer = OuterFactors(
        by_position(hidden), by_position(grads), layer.use_bias
    )
    variables = (layer.pointwise_kernel, layer.bias)[: 1 + layer.use_bias]
    kernel = DenseGradients((_depthwise(inputs, between, layer),))
    return [((layer.depthwise_kernel,), kernel), (variables, outer)]


def _depthwise(inputs: tf.Tensor, grads: tf.Tensor, layer) -> tf.Tensor:
    """Gradients `[n, taps · channels · multiplier]` of a depthwise kernel."""
    inputs = pad(inputs, padding_of(inputs, layer))
    channels, multiplier = inputs.shape[-1], layer.depth_multiplier
    *positions, _ = grads.shape[1:]
    if multiplier > 1:
        inputs = inputs[..., tf.newaxis]
        grads = tf.reshape(grads, [-1, *positions, channels, multiplier])
    axes = list(range(1, 1 + len(positions)))
    by_tap = [
        tf.reduce_sum(inputs[(slice(None), *where)] * grads, axis=axes)
        for where in tap_slices(inputs.shape[1 : 1 + len(positions)], layer)
    ]
    kernel = tf.stack(by_tap, axis=1)
    return tf.reshape(kernel, [-1, math.prod(kernel.shape[1:])])
