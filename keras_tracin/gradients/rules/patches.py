"""Patches of a convolution's input, and gradients of its kernel.

A convolution is a Dense layer applied to every patch. The patches are unfolded
once, `x [n, positions, kernel·channels]`, with columns in the order of the
flattened kernel. One `tf.gather` of whole channel vectors handles one, two and
three dimensions, strides and dilation; on a CPU it takes half the time of
slicing and concatenating.

With few channels, the time depends on the amount of memory written. There are
cheaper ways to the kernel's gradients then: see `_two_sided_gradients`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, OuterFactors
from keras_tracin.gradients.rules.dense import by_position


def kernel_factors(
    inputs: tf.Tensor, grads: tf.Tensor, layer, groups: int = 1
) -> OuterFactors | DenseGradients:
    """Factors of a convolution's kernel.

    Images `[n, 8, 8, 3]` under a 3×3 kernel with `padding="valid"` give
    patches `[n, 36, 27]` and grads `[n, 36, filters]`.

    Args:
        inputs: inputs `[n, *spatial, channels]` of the layer.
        grads: gradients `[n, *positions, outputs]` at its outputs.
        layer: the layer, for kernel size, strides, dilation and padding.
        groups: number of groups of channels and outputs.
    """
    pads = padding_of(inputs, layer)
    if groups == 1 and _writes_less_two_sided(inputs, grads, layer):
        return DenseGradients(
            (_two_sided_gradients(inputs, grads, layer, pads),), grads.shape[-1]
        )
    grads = by_position(grads)
    inputs = pad(inputs, pads)
    if groups > 1:
        patches = _unfold(inputs, layer)
        return DenseGradients(
            (_grouped_gradients(patches, grads, groups),), grads.shape[-1]
        )
    if _prefers_taps(inputs, grads, layer):
        return DenseGradients(
            (_gradients_by_tap(inputs, grads, layer),), grads.shape[-1]
        )
    patches = _unfold(inputs, layer)
    columns = math.prod(patches.shape[2:])
    patches = tf.reshape(patches, [-1, patches.shape[1], columns])
    return OuterFactors(patches, grads)


def channels_last(tensor: tf.Tensor) -> tf.Tensor:
    rank = tensor.shape.rank
    return tf.transpose(tensor, [0, *range(2, rank), 1])


def pad(inputs: tf.Tensor, pads: list[tuple[int, int]]) -> tf.Tensor:
    """Pads the spatial axes of `[n, *spatial, c]` with zeros."""
    if not any(low or high for low, high in pads):
        return inputs
    return tf.pad(inputs, [(0, 0), *pads, (0, 0)])


def tap_slices(sizes, layer) -> Iterator[tuple[slice, ...]]:
    """Slices of padded spatial axes that each tap of the kernel reads."""
    for offset in itertools.product(*map(range, layer.kernel_size)):
        yield tuple(
            slice(at * step, at * step + size - (kernel - 1) * step, stride)
            for size, at, kernel, stride, step in zip(
                sizes,
                offset,
                layer.kernel_size,
                layer.strides,
                layer.dilation_rate,
                strict=True,
            )
        )


def _grouped_gradients(
    patches: tf.Tensor, grads: tf.Tensor, groups: int
) -> tf.Tensor:
    """Kernel gradients `[n, p]` of a convolution with groups of channels."""
    _, t, taps, channels = patches.shape
    x = tf.reshape(patches, [-1, t, taps, groups, channels // groups])
    delta = tf.reshape(grads, [-1, t, groups, grads.shape[-1] // groups])
    kernel = tf.einsum("ntkgc,ntgo->nkcgo", x, delta)
    return tf.reshape(kernel, [-1, math.prod(kernel.shape[1:])])


def _unfold(inputs: tf.Tensor, layer) -> tf.Tensor:
    """The patches of a convolution, `[n, positions, taps, channels]`.

    Args:
        inputs: padded inputs `[n, *spatial, channels]`.
        layer: the layer, for kernel size, strides and dilation.
    """
    indices = _flat_positions(
        inputs.shape[1:-1],
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
    )
    return _gather(inputs, indices)


def _gather(tensor: tf.Tensor, indices: np.ndarray) -> tf.Tensor:
    """Gathers `[n, *spatial, c]` at flat positions: `[n, t, taps, c]`."""
    *spatial, channels = tensor.shape[1:]
    flat = tf.reshape(tensor, [-1, math.prod(spatial), channels])
    rows = tf.gather(flat, indices.reshape(-1), axis=1)
    return tf.reshape(rows, [-1, *indices.shape, channels])


def _writes_less_two_sided(inputs, grads, layer) -> bool:
    """Whether `_two_sided_gradients` writes less than unfolding patches.

    False if gradients should not be materialized, because products of pairs of
    positions are cheaper.
    """
    first, *rest = layer.kernel_size
    if first == 1 or layer.strides[0] != 1:
        return False
    rows, channels = inputs.shape[1], inputs.shape[-1]
    *spatial, outputs = grads.shape[1:]
    positions, beside = math.prod(spatial), math.prod(spatial[1:])
    columns = first * math.prod(rest) * channels
    if positions * (columns + outputs) < columns * outputs:
        return False
    both = math.prod(rest) * channels + first * outputs
    # At the end, gradients are transposed to the kernel's order: read, written.
    moved = rows * beside * both + 2 * columns * outputs
    return moved < positions * columns


def _two_sided_gradients(inputs, grads, layer, pads) -> tf.Tensor:
    """Kernel gradients `[n, p]` with each side unfolded along its own axes.

    A kernel of 3×3 taps `(a, b)` has `Σ_{y,x} x[y+a, x+b] δ[y, x]ᵀ`. With
    rows counted on the input's side, `r = y + a`, this is
    `Σ_{r,x} x[r, x+b] δ[r-a, x]ᵀ`: the input is unfolded along `b` alone and
    the gradient along `a` alone. This writes three copies of each instead of
    nine copies of one, and both sides of the product have similar widths.
    """
    (first, *rest), (step, *_) = layer.kernel_size, layer.dilation_rate
    (low, high), *side_pads = pads
    ones = [1] * len(rest)
    inputs = tf.pad(inputs, [(0, 0), (0, 0), *side_pads, (0, 0)])
    x = _gather(
        inputs,
        _flat_positions(
            inputs.shape[1:-1], (1, *rest), layer.strides, layer.dilation_rate
        ),
    )
    reach = (first - 1) * step
    rows_around = (reach - low, reach - high)
    unpadded = [(0, 0)] * (1 + len(rest))
    grads = tf.pad(grads, [(0, 0), rows_around, *unpadded])
    indices = _flat_positions(
        grads.shape[1:-1], (first, *ones), (1, *ones), (step, *ones)
    )
    delta = _gather(grads, indices[:, ::-1])  # row r - a for a = 0, 1, …

    t, taps, channels = x.shape[1:]
    outputs = delta.shape[-1]
    kernel = tf.matmul(
        tf.reshape(x, [-1, t, taps * channels]),
        tf.reshape(delta, [-1, t, first * outputs]),
        transpose_a=True,
    )
    kernel = tf.reshape(kernel, [-1, taps * channels, first, outputs])
    kernel = tf.transpose(kernel, [0, 2, 1, 3])
    return tf.reshape(kernel, [-1, first * taps * channels * outputs])


def _prefers_taps(inputs, grads, layer) -> bool:
    """Whether to compute the kernel's gradients from one view per tap.

    This pays for few channels (images), whose vectors are too short for a fast
    gather, if gradients should be materialized.
    """
    t, outputs = grads.shape[1:]
    channels = inputs.shape[-1]
    columns = math.prod(layer.kernel_size) * channels
    return channels <= 4 and t * (columns + outputs) >= columns * outputs


def _gradients_by_tap(inputs: tf.Tensor, grads: tf.Tensor, layer) -> tf.Tensor:
    """Kernel gradients `[n, p]` from one strided view of the input per tap."""
    rank = inputs.shape.rank
    planes = tf.transpose(inputs, [0, rank - 1, *range(1, rank - 1)])
    views = [
        planes[(slice(None), slice(None), *where)]
        for where in tap_slices(inputs.shape[1:-1], layer)
    ]
    rows = len(views) * planes.shape[1]
    patches = tf.reshape(tf.stack(views, axis=1), [-1, rows, grads.shape[1]])
    kernel = tf.matmul(patches, grads)  # [n, taps · channels, outputs]
    return tf.reshape(kernel, [-1, rows * grads.shape[-1]])


def padding_of(inputs: tf.Tensor, layer) -> list[tuple[int, int]]:
    """Numbers of zeros that the layer pads each spatial axis with."""
    spatial = inputs.shape[1:-1].as_list()
    if None in spatial:
        raise ValueError(
            "Per-example gradients of a convolution need a fixed spatial "
            f"size. Layer '{layer.name}' received inputs of shape "
            f"{inputs.shape}. Give the data a static shape "
            "(`tf.ensure_shape` in its `map`), or leave the layer out by "
            "naming the others in `layers=`."
        )
    return [
        _padding(*sizes, padding=layer.padding)
        for sizes in zip(
            spatial,
            layer.kernel_size,
            layer.strides,
            layer.dilation_rate,
            strict=True,
        )
    ]


def _padding(size, kernel, stride, dilation, *, padding) -> tuple[int, int]:
    reach = (kernel - 1) * dilation
    if padding == "valid":
        return 0, 0
    if padding == "causal":
        return reach, 0
    outputs = -(-size // stride)
    needed = max((outputs - 1) * stride + reach + 1 - size, 0)
    return needed // 2, needed - needed // 2


def _flat_positions(sizes, kernel_size, strides, dilation) -> np.ndarray:
    """Flat input positions `[positions, taps]` that each output reads."""
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
