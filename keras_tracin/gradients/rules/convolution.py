"""Convolutions: a Dense layer applied to every patch of its input.

The patches are unfolded once, `x [n, positions, kernel·channels]`, with the
columns in the order of the flattened kernel. One `tf.gather` of whole channel
vectors does it for one, two and three dimensions, strides and dilation alike;
on a CPU it takes half the time of slicing and concatenating.
"""

from __future__ import annotations

import itertools
import math

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, OuterFactors
from keras_tracin.gradients.rules.dense import by_position
from keras_tracin.gradients.rules.registry import LayerUse, Part, register


@register(
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    before_activation=True,
)
def convolution(layer, use: LayerUse) -> list[Part]:
    """The rule of `Conv1D`, `Conv2D` and `Conv3D`.

    Images `[n, 8, 8, 3]` under a 3×3 kernel with `padding="valid"` give
    patches `[n, 36, 27]` beside grads `[n, 36, filters]`.
    """
    inputs, grads = tf.convert_to_tensor(use.inputs), use.grad
    if layer.data_format == "channels_first":
        inputs, grads = _channels_last(inputs), _channels_last(grads)
    grads = by_position(grads)
    inputs = _padded(inputs, layer)
    variables = (layer.kernel, layer.bias)[: 1 + layer.use_bias]
    if layer.groups == 1 and not _is_narrow(inputs, grads, layer):
        patches = unfold(inputs, layer)
        columns = math.prod(patches.shape[2:])
        patches = tf.reshape(patches, [-1, patches.shape[1], columns])
        return [(variables, OuterFactors(patches, grads, layer.use_bias))]
    if layer.groups == 1:
        gradients = [_narrow(inputs, grads, layer)]
    else:
        gradients = [_grouped(unfold(inputs, layer), grads, layer.groups)]
    if layer.use_bias:
        gradients.append(tf.reduce_sum(grads, axis=1))
    return [(variables, DenseGradients(tuple(gradients)))]


def _channels_last(tensor: tf.Tensor) -> tf.Tensor:
    rank = tensor.shape.rank
    return tf.transpose(tensor, [0, *range(2, rank), 1])


def _grouped(patches: tf.Tensor, grads: tf.Tensor, groups: int) -> tf.Tensor:
    """Kernel gradients `[n, p]` where group g of filters sees group g of x."""
    _, t, taps, channels = patches.shape
    x = tf.reshape(patches, [-1, t, taps, groups, channels // groups])
    delta = tf.reshape(grads, [-1, t, groups, grads.shape[-1] // groups])
    kernel = tf.einsum("ntkgc,ntgo->nkcgo", x, delta)
    return tf.reshape(kernel, [-1, math.prod(kernel.shape[1:])])


def unfold(inputs: tf.Tensor, layer) -> tf.Tensor:
    """The patches a convolution sees, `[n, positions, taps, channels]`.

    Args:
        inputs: padded, `[n, *spatial, channels]`.
        layer: gives kernel size, strides and dilation.
    """
    *spatial, channels = inputs.shape[1:]
    taken = _taken_positions(
        spatial, layer.kernel_size, layer.strides, layer.dilation_rate
    )
    flat = tf.reshape(inputs, [-1, math.prod(spatial), channels])
    patches = tf.gather(flat, taken.reshape(-1), axis=1)
    return tf.reshape(patches, [-1, *taken.shape, channels])


def _is_narrow(inputs, grads, layer) -> bool:
    """Whether to go straight to the kernel's gradients, tap by tap.

    Worth it for few channels (images), whose vectors are too short for
    `unfold` to move them fast, and right where gradients are smaller than
    pairs of positions.
    """
    t, outputs = grads.shape[1:]
    channels = inputs.shape[-1]
    columns = math.prod(layer.kernel_size) * channels
    return channels <= 4 and t * (columns + outputs) >= columns * outputs


def _narrow(inputs: tf.Tensor, grads: tf.Tensor, layer) -> tf.Tensor:
    """Kernel gradients `[n, p]` from one strided view of the input per tap."""
    rank = inputs.shape.rank
    planes = tf.transpose(inputs, [0, rank - 1, *range(1, rank - 1)])
    views = []
    for offset in itertools.product(*map(range, layer.kernel_size)):
        where = [slice(None), slice(None)]
        for size, at, kernel, stride, step in zip(
            inputs.shape[1:-1],
            offset,
            layer.kernel_size,
            layer.strides,
            layer.dilation_rate,
            strict=True,
        ):
            start = at * step
            stop = start + size - (kernel - 1) * step
            where.append(slice(start, stop, stride))
        views.append(planes[tuple(where)])
    rows = len(views) * planes.shape[1]
    patches = tf.reshape(tf.stack(views, axis=1), [-1, rows, grads.shape[1]])
    kernel = tf.matmul(patches, grads)  # [n, taps · channels, outputs]
    return tf.reshape(kernel, [-1, rows * grads.shape[-1]])


def _padded(inputs: tf.Tensor, layer) -> tf.Tensor:
    """`inputs` with the zeros that the layer's `padding` stands for."""
    spatial = inputs.shape[1:-1].as_list()
    if None in spatial:
        raise ValueError(
            "Per-example gradients of a convolution need a fixed spatial "
            f"size. Layer '{layer.name}' received inputs of shape "
            f"{inputs.shape}. Give the data a static shape "
            "(`tf.ensure_shape` in its `map`), or leave the layer out by "
            "naming the others in `layers=`."
        )
    pads = [
        _padding(*sizes, padding=layer.padding)
        for sizes in zip(
            spatial,
            layer.kernel_size,
            layer.strides,
            layer.dilation_rate,
            strict=True,
        )
    ]
    if not any(low or high for low, high in pads):
        return inputs
    return tf.pad(inputs, [(0, 0), *pads, (0, 0)])


def _padding(size, kernel, stride, dilation, *, padding) -> tuple[int, int]:
    reach = (kernel - 1) * dilation
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return reach, 0
    outputs = -(-size // stride)
    needed = max((outputs - 1) * stride + reach + 1 - size, 0)
    return needed // 2, needed - needed // 2


def _taken_positions(sizes, kernel_size, strides, dilation) -> np.ndarray:
    """Flat input positions `[positions, taps]` that each output looks at."""
    starts, offsets = [], []
    for size, kernel, stride, step in zip(
        sizes, kernel_size, strides, dilation, strict=True
    ):
        starts.append(range(0, size - (kernel - 1) * step, stride))
        offsets.append(range(0, kernel * step, step))
    weights = np.cumprod([1, *sizes[:0:-1]])[::-1]
    start = np.array(list(itertools.product(*starts))) @ weights
    offset = np.array(list(itertools.product(*offsets))) @ weights
    return (start[:, None] + offset[None, :]).astype(np.int32)
