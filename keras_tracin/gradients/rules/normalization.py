"""Normalisations: `y = γ x̂ + β`, so γ has `Σ_t δ_t x̂_t` and β has `Σ_t δ_t`.

The sums are over the axes along which γ and β are shared. Few entries per
example remain, so the gradients are materialized.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    present,
    register,
)


@register(keras.layers.LayerNormalization, variables=("gamma", "beta"))
def layer_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.LayerNormalization`."""
    inputs = tf.convert_to_tensor(use.inputs)
    mean, variance = tf.nn.moments(inputs, _axes(layer.axis), keepdims=True)
    # Keras's scaling by the root mean square is by this deviation too.
    centered = inputs if layer.rms_scaling else inputs - mean
    normalized = centered * tf.math.rsqrt(variance + layer.epsilon)
    return _scale_and_offset(layer, use, normalized, _axes(layer.axis))


@register(keras.layers.BatchNormalization, variables=("gamma", "beta"))
def batch_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.BatchNormalization` in inference mode.

    `x̂` uses the statistics of the checkpoint, so the examples of a batch do not
    interact.
    """
    inputs = tf.convert_to_tensor(use.inputs)
    shared = _shared_axes(inputs, _axes(layer.axis))
    offset = _sum_to_rows(use.grad, shared)
    variables, parts = [], []
    if layer.gamma is not None:
        mean, variance = (
            tf.cast(tf.convert_to_tensor(statistic), inputs.dtype)
            for statistic in (layer.moving_mean, layer.moving_variance)
        )
        # Σ_t δ_t (x_t - μ)/σ, with the statistics taken out of the sum, so
        # that only a product is computed at every position. For |μ| » σ, the
        # network's output has the same rounding error.
        products = _sum_to_rows(use.grad * inputs, shared)
        scale = tf.math.rsqrt(variance + layer.epsilon)
        variables.append(layer.gamma)
        parts.append((products - mean * offset) * scale)
    if layer.beta is not None:
        variables.append(layer.beta)
        parts.append(offset)
    return [(tuple(variables), DenseGradients(tuple(parts)))] if parts else []


@register(keras.layers.GroupNormalization, variables=("gamma", "beta"))
def group_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.GroupNormalization`."""
    inputs = tf.convert_to_tensor(use.inputs)
    axis = layer.axis % inputs.shape.rank
    sizes = tf.shape(inputs)
    split = [layer.groups, inputs.shape[axis] // layer.groups]
    grouped = tf.reshape(
        inputs, tf.concat([sizes[:axis], split, sizes[axis + 1 :]], axis=0)
    )
    reduced = [k for k in range(1, 1 + inputs.shape.rank) if k != axis]
    mean, variance = tf.nn.moments(grouped, reduced, keepdims=True)
    scale = tf.math.rsqrt(variance + layer.epsilon)
    normalized = tf.reshape((grouped - mean) * scale, sizes)
    normalized = tf.ensure_shape(normalized, inputs.shape)
    return _scale_and_offset(layer, use, normalized, [axis])


@register(*present("RMSNormalization"), variables=("scale",))
def rms_normalization(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.RMSNormalization`.

    Its scale belongs to the last axes, whichever axes it normalizes over.
    """
    inputs = tf.convert_to_tensor(use.inputs)
    square = tf.reduce_mean(
        tf.square(inputs), axis=_axes(layer.axis), keepdims=True
    )
    normalized = inputs * tf.math.rsqrt(square + layer.epsilon)
    rank, sizes = inputs.shape.rank, layer.scale.shape
    stretched = [
        rank - len(sizes) + k for k, size in enumerate(sizes) if size == 1
    ]
    shared = [*range(1, rank - len(sizes)), *stretched]
    gradients = _sum_to_rows(use.grad * normalized, shared)
    return [((layer.scale,), DenseGradients((gradients,)))]


def _axes(axis) -> list[int]:
    return list(axis) if isinstance(axis, list | tuple) else [axis]


def _shared_axes(tensor: tf.Tensor, axes: list[int]) -> list[int]:
    """All axes except that of the batch and `axes`."""
    rank = tensor.shape.rank
    excluded = {axis % rank for axis in axes}
    return [axis for axis in range(1, rank) if axis not in excluded]


def _scale_and_offset(layer, use, normalized, axes) -> list[Part]:
    shared = _shared_axes(normalized, axes)
    variables, parts = [], []
    if layer.gamma is not None:
        variables.append(layer.gamma)
        parts.append(_sum_to_rows(use.grad * normalized, shared))
    if layer.beta is not None:
        variables.append(layer.beta)
        parts.append(_sum_to_rows(use.grad, shared))
    if not parts:
        return []
    return [(tuple(variables), DenseGradients(tuple(parts)))]


def _sum_to_rows(values: tf.Tensor, axes: list[int]) -> tf.Tensor:
    """Sums over `axes` and flattens the rest, `[n, p]`."""
    summed = tf.reduce_sum(values, axis=axes) if axes else values
    width = summed.shape[1:].num_elements()
    return tf.reshape(summed, [-1, width])
