"""Operations on outer products `Σ_t x_t δ_tᵀ`: kernels, with or without bias.

Sections are those of Pruthi et al. (2020).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from keras_tracin.gradients.factors.dense import one_by_one
from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Direction,
    Factors,
    OuterFactors,
    PositionGradients,
)
from keras_tracin.gradients.factors.operations import (
    Work,
    compact,
    contract,
    inner,
    materialize,
    split,
    squared_norm,
    total,
    weighted_norm,
    work,
)

# Number of entries of a kernel up to which gradients are materialized for
# products with dense directions: for 1,024 examples these are 256 MB.
_LARGE_KERNEL = 2**16


def with_ones(factors: OuterFactors) -> OuterFactors:
    """The factors with the bias as the weight of one more input, always 1."""
    if not factors.bias:
        return factors
    ones = tf.ones_like(factors.inputs[:, :, :1])
    inputs = tf.concat([factors.inputs, ones], axis=-1)
    return dataclasses.replace(factors, inputs=inputs, bias=False)


@materialize.register
def _(factors: OuterFactors) -> DenseGradients:
    kernel = tf.matmul(factors.inputs, factors.grads, transpose_a=True)
    parts = [stored(factors, kernel)]
    if factors.bias:
        parts.append(tf.reduce_sum(factors.grads, axis=1))
    outputs = factors.sizes[-1] if factors.axes is None else None
    return DenseGradients(tuple(parts), outputs=outputs)


def stored(factors: OuterFactors, kernels: tf.Tensor) -> tf.Tensor:
    """Kernels `[n, i, o]` as entries `[n, p]` in the variable's order."""
    if factors.axes is not None:
        return factors.axes.store(kernels)
    _, i, o = factors.sizes
    return tf.reshape(kernels, [-1, i * o])


def loaded(factors: OuterFactors, entries: tf.Tensor) -> tf.Tensor:
    """Entries `[..., p]` of the variable as kernels `[n, i, o]`."""
    _, i, o = factors.sizes
    if factors.axes is not None:
        entries = factors.axes.load(entries)
    return tf.reshape(entries, [-1, i, o])


def _is_compact(factors: OuterFactors, sparing: bool) -> bool:
    """Whether the compact form is that of factors."""
    t, i, o = factors.sizes
    if t is None or t == 1:
        return t == 1
    return (t if sparing else t * t) * (i + o) < i * o


@compact.register
def _(factors: OuterFactors, sparing: bool = False) -> Factors:
    return factors if _is_compact(factors, sparing) else materialize(factors)


@work.register
def _(factors: OuterFactors, sparing: bool = False) -> Work:
    t, i, o = factors.sizes
    size, bias = factors.grads.dtype.size, o * factors.bias
    if _is_compact(factors, sparing):
        # Forward, and backward to the inputs.
        return Work(size * t * (i + o), 2 * t * i * o, t * t * (i + o))
    return Work(size * (i * o + bias), 3 * (t or 1) * i * o, i * o)


@inner.register
def _(left: OuterFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        t, i, o = left.sizes
        if t is None or i * o <= t * _LARGE_KERNEL:
            return inner(materialize(left), right)
        return one_by_one(left, right)
    if left.sizes[0] == right.sizes[0] == 1:
        return _inner_single(left, right)
    return _inner_pairs(left, right)


def _inner_single(left: OuterFactors, right: OuterFactors) -> tf.Tensor:
    """(δ·δ')(x·x' + 1): one position on each side (section F)."""
    _, i, o = left.sizes
    inputs = tf.matmul(
        tf.reshape(left.inputs, [-1, i]),
        tf.reshape(right.inputs, [-1, i]),
        transpose_b=True,
    )
    grads = tf.matmul(
        tf.reshape(left.grads, [-1, o]),
        tf.reshape(right.grads, [-1, o]),
        transpose_b=True,
    )
    return grads * (inputs + 1.0) if left.bias else grads * inputs


def _inner_pairs(left: OuterFactors, right: OuterFactors) -> tf.Tensor:
    """Σ_{s,t} (δ_t·δ'_s)(x_t·x'_s + 1): every pair of positions."""
    inputs = tf.einsum("nti,msi->nmts", left.inputs, right.inputs)
    grads = tf.einsum("nto,mso->nmts", left.grads, right.grads)
    if left.bias:
        inputs += 1.0
    return tf.reduce_sum(inputs * grads, axis=[2, 3])


@squared_norm.register
def _(factors: OuterFactors) -> tf.Tensor:
    t, i, o = factors.sizes
    if t is None or t * (i + o) >= i * o:
        return squared_norm(materialize(factors))
    inputs = tf.matmul(factors.inputs, factors.inputs, transpose_b=True)
    grads = tf.matmul(factors.grads, factors.grads, transpose_b=True)
    if factors.bias:
        inputs += 1.0
    return tf.reduce_sum(inputs * grads, axis=[1, 2])


@total.register
def _(factors: OuterFactors) -> Direction:
    _, i, o = factors.sizes
    inputs = tf.reshape(factors.inputs, [-1, i])
    grads = tf.reshape(factors.grads, [-1, o])
    kernel = stored(factors, tf.matmul(inputs, grads, transpose_a=True))
    kernel = tf.reshape(kernel, [-1])
    bias = (tf.reduce_sum(grads, axis=0),) if factors.bias else ()
    return (kernel, *bias)


@contract.register
def _(factors: OuterFactors, direction: Direction) -> tf.Tensor:
    grads, kernel = factors.grads, loaded(factors, direction[0])[0]
    outputs = tf.einsum("nti,io->nto", factors.inputs, kernel)
    if factors.bias:
        outputs += direction[1]
    return tf.reduce_sum(outputs * grads, axis=[1, 2])


@weighted_norm.register
def _(factors: OuterFactors, weights: Direction) -> tf.Tensor:
    if factors.sizes[0] != 1:
        return weighted_norm(materialize(factors), weights)
    # The entries x δ of a single position have squares x² δ².
    squares = dataclasses.replace(
        factors,
        inputs=tf.square(factors.inputs),
        grads=tf.square(factors.grads),
    )
    return contract(squares, weights)


@split.register
def _(factors: OuterFactors, terms: bool = False) -> list[Factors]:
    if not factors.bias:
        return [factors]
    bias: Factors
    if terms:  # nothing is computed, so that types may be split
        bias = PositionGradients((factors.grads,), calls=factors.calls)
    else:
        bias = DenseGradients((tf.reduce_sum(factors.grads, axis=1),))
    return [dataclasses.replace(factors, bias=False), bias]
