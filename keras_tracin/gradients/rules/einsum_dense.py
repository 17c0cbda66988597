"""EinsumDense, including the projections inside attention layers.

The letters of the equation identify the axes. In `abc,cde->abde`, `a`
is the batch, `b` is a position, `c` is contracted (the `i` of `OuterFactors`)
and `de` are the outputs (its `o`). The kernel may have its axes in any order:
`btd,ndh->btnh` has the heads first.
"""

from __future__ import annotations

import math
import string

import keras
import tensorflow as tf

from keras_tracin.gradients.factors import (
    DenseGradients,
    KernelAxes,
    OuterFactors,
    summed_over,
)
from keras_tracin.gradients.rules import low_rank
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Part,
    register,
    watch_before_activation,
)


@register(
    keras.layers.EinsumDense,
    variables=low_rank.KERNEL,
    watching=watch_before_activation,
)
def einsum_dense(layer, use: LayerUse) -> list[Part]:
    """The rule of `keras.layers.EinsumDense`."""
    inputs, grads = tf.convert_to_tensor(use.inputs), use.grad
    of_x, of_w, of_y = _letters(layer.equation, inputs.shape.rank)
    inputs, of_x = _sum_unused(inputs, of_x, of_w + of_y)
    contracted = [c for c in of_w if c in of_x]
    # A bias has the outputs' order, and shares their factors in this alone.
    order = of_w if layer.bias is None else of_y
    produced = [c for c in order if c in of_w and c in of_y]
    if len(contracted) + len(produced) != len(of_w):
        kernel: OuterFactors | DenseGradients
        kernel = _kernel_gradients(inputs, grads, of_x, of_w, of_y)
        bias_joins = False
    else:
        positions = [c for c in of_y if c in of_x]
        x = _as_rows(inputs, of_x, positions, contracted)
        delta = _as_rows(grads, of_y, positions, produced)
        # A quantized kernel does not have the shape of its letters.
        sizes = {c: inputs.shape[of_x.index(c)] for c in contracted}
        sizes |= {c: grads.shape[of_y.index(c)] for c in produced}
        bias_joins = layer.bias is not None and _bias_letters(layer, of_y) == {
            c for c in produced if sizes[c] != 1
        }
        axes = _axes(sizes, of_w)
        kernel = OuterFactors(x, delta, bias_joins, axes=axes)
    parts = low_rank.of_kernel(layer, kernel)
    if layer.bias is not None and not bias_joins:
        bias_axes = [c for c in of_y if c in _bias_letters(layer, of_y)]
        summed = [k for k, c in enumerate(of_y) if k > 0 and c not in bias_axes]
        parts.append(((layer.bias,), summed_over([grads], summed)))
    return parts


def _axes(sizes: dict[str, int], of_w: str) -> KernelAxes | None:
    """How the kernel stores its axes; None if as inputs, then outputs.

    Args:
        sizes: the sizes of the inputs' letters, and after them of the outputs'.
        of_w: the kernel's letters.
    """
    letters = list(sizes)
    if letters == list(of_w):
        return None
    return KernelAxes(
        tuple(sizes.values()), tuple(letters.index(c) for c in of_w)
    )


def _letters(equation: str, rank: int) -> tuple[str, str, str]:
    """The letters of input, kernel and output, with `...` expanded."""
    left, of_y = equation.replace(" ", "").split("->")
    of_x, of_w = left.split(",")
    if "..." in of_x:
        unused = [c for c in string.ascii_letters if c not in equation]
        hidden = "".join(unused[: rank - len(of_x.replace("...", ""))])
        of_x, of_y = (s.replace("...", hidden) for s in (of_x, of_y))
    return of_x, of_w, of_y


def _sum_unused(inputs, of_x: str, used: str) -> tuple[tf.Tensor, str]:
    """Sums the input over axes that neither kernel nor output has."""
    unused = [axis for axis, c in enumerate(of_x) if c not in used]
    remaining = "".join(c for c in of_x if c in used)
    return (tf.reduce_sum(inputs, axis=unused) if unused else inputs), remaining


def _bias_letters(layer, of_y: str) -> set[str]:
    """The output axes along which the bias varies."""
    if layer.bias is None:
        return set()
    tail = of_y[len(of_y) - len(layer.bias.shape) :]
    return {
        c for c, size in zip(tail, layer.bias.shape, strict=True) if size != 1
    }


def _as_rows(tensor, letters, positions, columns) -> tf.Tensor:
    """Moves the axes to `[n, t, columns]`."""
    order = [letters.index(c) for c in positions + columns]
    width = math.prod(tensor.shape[letters.index(c)] for c in columns)
    transposed = tensor
    if order != sorted(order):
        transposed = tf.transpose(tensor, order)
    return tf.reshape(
        transposed,
        [tf.shape(transposed)[0], _count(transposed, columns), width],
    )


def _count(transposed, columns) -> int:
    rank = transposed.shape.rank
    sizes = transposed.shape[1 : rank - len(columns)]
    count = sizes.num_elements()
    return -1 if count is None else count


def _kernel_gradients(inputs, grads, of_x, of_w, of_y) -> DenseGradients:
    """Materialized gradients, in the kernel's order of axes.

    They are needed if an axis belongs to input, kernel and output.
    """
    batch = of_x[0]
    kernel = tf.einsum(f"{of_x},{of_y}->{batch}{of_w}", inputs, grads)
    return DenseGradients((_flat(kernel),))


def _flat(tensor: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tensor, [-1, tensor.shape[1:].num_elements()])
