"""Kernels with low-rank adapters (LoRA): `W = W0 + s A B` with `W0` fixed.

The gradients of `A` and `B` follow from the gradient `G` of `W`: they are
`s G Bᵀ` and `s Aᵀ G`. For `G = Σ_t x_t δ_tᵀ`, these are `Σ_t x_t (s B δ_t)ᵀ`
and `Σ_t (s Aᵀ x_t) δ_tᵀ`: outer products again, with as few columns, or rows,
as the adapter has ranks.

Layers with a quantized kernel also train the adapters alone, by the same
formulas.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
)
from keras_tracin.gradients.rules.registry import Part

# Attributes of layers; for `register(variables=...)`.
KERNEL = ("_kernel", "lora_kernel_a", "lora_kernel_b", "bias")
EMBEDDINGS = ("_embeddings", "lora_embeddings_a", "lora_embeddings_b")


def of_kernel(layer: keras.Layer, factors: Factors) -> list[Part]:
    """Factors of a layer's kernel, and of its bias if `factors` include it."""
    if not layer.lora_enabled:
        variables = (getattr(layer, "_kernel", None), layer.bias)
        count = 2 if _has_bias(factors) else 1
        return [(variables[:count], factors)]
    kernel, *bias = algebra.split(factors, terms=True)
    parts = _adapters(layer, kernel, layer.lora_kernel_a, layer.lora_kernel_b)
    return parts + [((layer.bias,), gradients) for gradients in bias]


def of_table(layer: keras.layers.Embedding, factors: Factors) -> list[Part]:
    """Factors of an embedding's table."""
    if not layer.lora_enabled:
        return [((layer._embeddings,), factors)]
    return _adapters(
        layer, factors, layer.lora_embeddings_a, layer.lora_embeddings_b
    )


def _has_bias(factors: Factors) -> bool:
    if isinstance(factors, DenseGradients):
        return len(factors.parts) == 2
    return isinstance(factors, OuterFactors) and factors.bias


def _adapters(layer, factors, a, b) -> list[Part]:
    rank = layer.lora_rank
    scale = getattr(layer, "lora_alpha", rank) / rank
    dtype = tf.nest.flatten(factors)[-1].dtype
    left, right = (
        tf.cast(tf.convert_to_tensor(matrix), dtype) for matrix in (a, b)
    )
    left = tf.reshape(left, [-1, rank])
    of_a, of_b = adapt(factors, left, right, scale)
    return [((a,), of_a), ((b,), of_b)]


@functools.singledispatch
def adapt(
    factors: Factors, a: tf.Tensor, b: tf.Tensor, scale: float
) -> tuple[Factors, Factors]:
    """Factors of `a` and `b` from those of the matrix `scale · a b`.

    Args:
        factors: factors of the matrix `[rows, columns]`. Outer factors may
            divide it differently: their inputs may be shorter than `rows` by
            an integer factor, and their grads longer by the same factor.
        a: matrix `[rows, rank]`.
        b: matrix `[rank, columns]`.
        scale: factor of the product.
    """
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@adapt.register
def _(factors: DenseGradients, a, b, scale):
    kernel = tf.reshape(factors.parts[0], [-1, a.shape[0], b.shape[1]])
    of_a = tf.einsum("nio,ro->nir", kernel, scale * b)
    of_b = tf.einsum("ir,nio->nro", scale * a, kernel)
    return (
        DenseGradients((tf.reshape(of_a, [-1, math.prod(a.shape)]),)),
        DenseGradients((tf.reshape(of_b, [-1, math.prod(b.shape)]),)),
    )


@adapt.register
def _(factors: OuterFactors, a, b, scale):
    t, i, _ = factors.sizes
    (rows, rank), columns = a.shape, b.shape[1]
    axes = factors.axes
    last = axes is None or axes.order[-1] == len(axes.order) - 1
    if rows % i or not last:
        return adapt(algebra.materialize(factors), a, b, scale)
    between = rows // i  # axes of the kernel that A and the grads share
    n = tf.shape(factors.grads)[0]
    t, positions = (-1, -1) if t is None else (t, t * between)
    grads = tf.reshape(factors.grads, [n, positions, columns])
    reduced = tf.einsum("nto,ro->ntr", grads, scale * b)
    reduced = tf.reshape(reduced, [n, t, between * rank])
    of_a = dataclasses.replace(factors, grads=reduced)
    left = scale * a
    if axes is not None:
        axes = dataclasses.replace(axes, sizes=(*axes.sizes[:-1], rank))
        of_a = dataclasses.replace(of_a, axes=axes)
        left = axes.load(left)
    left = tf.reshape(left, [i, between * rank])
    hidden = tf.einsum("nti,ir->ntr", factors.inputs, left)
    hidden = tf.reshape(hidden, [n, positions, rank])
    return of_a, OuterFactors(hidden, grads, runs=factors.runs * between)


@adapt.register
def _(factors: LookupFactors, a, b, scale):
    reduced = tf.einsum("nto,ro->ntr", factors.grads, scale * b)
    hidden = tf.gather(scale * a, factors.ids)
    return (
        LookupFactors(factors.ids, reduced, factors.vocabulary),
        OuterFactors(hidden, factors.grads),
    )
