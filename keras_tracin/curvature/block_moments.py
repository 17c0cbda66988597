"""Second moments of a block's gradients: of its sides, and in its basis.

Synopsis:

    for block, factors in cut(captured.factors, groups):
        basis = eigenbasis(second_moments(block, factors), tf.float32)
        mean_squares = sum_of_squares(block, factors, basis) / count
"""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from keras_tracin.curvature.kronecker import Basis, Block, bases_of, rotate
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
    TableFactors,
    with_ones,
)


def second_moments(
    block: Block, factors: Factors, share: float = 1.0
) -> tuple[tf.Tensor, ...]:
    """A `[i, i]` and B `[o, o]` summed over a batch, of sides with a basis.

    Args:
        block: the block.
        factors: the batch's gradients.
        share: share of the examples whose inputs A is made of.
    """
    if not block.sides:
        return ()
    if isinstance(factors, LookupFactors):
        return (_moment(factors.grads),)
    if isinstance(factors, TableFactors):
        # In both uses a position's part of E[GᵀG]: rows that are looked up
        # are single ones, those of the product as long as its inputs.
        outer = factors.outer
        lengths = tf.norm(outer.inputs, axis=2, keepdims=True)
        by_product = _moment(lengths * outer.grads)
        return (_moment(factors.looked_up.grads) + by_product,)
    if isinstance(factors, OuterFactors):
        moments = []
        if block.left:
            inputs = _inputs_with_one(factors)
            if share < 1:
                inputs = inputs[: _part_of(tf.shape(inputs)[0], share)]
            moments.append(_moment(inputs))
        if block.right:
            moments.append(_moment(factors.grads))
        return tuple(moments)
    whole = _matrices(block, factors)
    return (
        tf.einsum("nio,njo->ij", whole, whole),
        tf.einsum("nio,niq->oq", whole, whole),
    )


def _moment(side: tf.Tensor) -> tf.Tensor:
    """The second moment of vectors `[n, t, i]`, summed: `[i, i]`."""
    vectors = tf.reshape(side, [-1, side.shape[-1]])
    return tf.matmul(vectors, vectors, transpose_a=True)


def sum_of_squares(block: Block, factors: Factors, basis: Basis) -> tf.Tensor:
    """Squares of the gradients in the basis, `[i, o]` summed over a batch.

    Nothing as large as a table is made for each example: where a side has no
    basis, because it is large, examples are taken in turn.
    """
    if isinstance(factors, DenseGradients) and not block.sides:
        return tf.reduce_sum(tf.square(factors.parts[0]), 0)[tf.newaxis]
    left, right = bases_of(block, basis)
    if isinstance(factors, LookupFactors):
        return _squares_of_rows(block, factors, right)
    if isinstance(factors, TableFactors):
        return _squares_in_turn(block, factors.outer, right, factors.looked_up)
    if isinstance(factors, OuterFactors) and factors.sizes[0] == 1:
        both = _rotated(factors, left, right)
        x, delta = tf.square(both.inputs[:, 0]), tf.square(both.grads[:, 0])
        return tf.matmul(x, delta, transpose_a=True)
    if isinstance(factors, OuterFactors) and len(block.sides) < 2:
        return _squares_in_turn(block, _rotated(factors, left, right))
    return tf.reduce_sum(tf.square(in_basis(block, factors, basis)), axis=0)


def in_basis(block: Block, factors: Factors, basis: Basis) -> tf.Tensor:
    """The gradients `[n, i, o]` of a block's basis, U_Aᵀ g U_B.

    Args:
        block: the block.
        factors: the gradients of a batch, in the block's own form.
        basis: its basis.
    """
    left, right = bases_of(block, basis)
    if isinstance(factors, OuterFactors) and (
        len(block.sides) < 2 or _by_position(factors)
    ):
        both = _rotated(factors, left, right)
        return tf.matmul(both.inputs, both.grads, transpose_a=True)
    return rotate(_matrices(block, factors), left, right)


def whitened(
    block: Block, factors: Factors, basis: Basis, scale: tf.Tensor
) -> Factors:
    """The gradients in a block's basis, each entry times a factor of its own.

    Args:
        block: the block.
        factors: the gradients of a batch, in the block's own form.
        basis: its basis.
        scale: the factors, `[i, o]`.
    """
    if isinstance(factors, LookupFactors) and not block.left:
        _, right = bases_of(block, basis)
        rows = _times(factors.grads, right) * tf.gather(scale, factors.ids)
        return dataclasses.replace(factors, grads=rows)
    entries = in_basis(block, factors, basis) * scale
    # A table has the same sketch, in whichever form its gradients come.
    is_table = block.rows > 1 and not block.left
    outputs = block.columns if is_table else None
    return DenseGradients((tf.reshape(entries, [-1, block.size]),), outputs)


def _rotated(
    factors: OuterFactors, left: tf.Tensor | None, right: tf.Tensor | None
) -> OuterFactors:
    """Both sides in the basis, the inputs with a one for the bias."""
    inputs = _times(_inputs_with_one(factors), left)
    return OuterFactors(inputs, _times(factors.grads, right))


def _times(side: tf.Tensor, basis: tf.Tensor | None) -> tf.Tensor:
    return side if basis is None else tf.einsum("nti,ij->ntj", side, basis)


def _squares_of_rows(
    block: Block, factors: LookupFactors, right: tf.Tensor | None
) -> tf.Tensor:
    """`[vocabulary, o]`: a row that is looked up twice has one gradient."""
    ids, grads = factors.ids, _times(factors.grads, right)
    same = tf.equal(ids[:, :, tf.newaxis], ids[:, tf.newaxis])
    sums = tf.matmul(tf.cast(same, grads.dtype), grads)  # at each look-up
    count = tf.reduce_sum(tf.cast(same, grads.dtype), axis=2, keepdims=True)
    return tf.math.unsorted_segment_sum(
        tf.square(sums) / count, ids, block.rows
    )


def _squares_in_turn(
    block: Block,
    outer: OuterFactors,
    right: tf.Tensor | None = None,
    looked_up: LookupFactors | None = None,
) -> tf.Tensor:
    """Squares of kernels or tables, one example's after another's.

    Args:
        block: the block.
        outer: the product's factors, `x` and `δ`.
        right: the basis of the columns, for a table.
        looked_up: the look-ups of the same table.
    """
    sides = [outer.inputs, _times(outer.grads, right)]
    if looked_up is not None:
        sides += [looked_up.ids, _times(looked_up.grads, right)]

    def add(total, example):
        inputs, grads, *rows = example
        whole = tf.matmul(inputs, grads, transpose_a=True)
        if rows:
            ids, values = rows
            whole = tf.tensor_scatter_nd_add(whole, ids[:, tf.newaxis], values)
        return total + tf.square(whole)

    zeros = tf.zeros([block.rows, block.columns], outer.grads.dtype)
    return tf.foldl(add, tuple(sides), zeros, parallel_iterations=1)


def _by_position(factors: OuterFactors) -> bool:
    """Whether sides are rotated at less cost than explicit gradients."""
    t, i, o = factors.sizes
    return t is None or t * (i * i + o * o) <= i * o * (i + o)


def _part_of(count: tf.Tensor, share: float) -> tf.Tensor:
    part = tf.math.ceil(share * tf.cast(count, tf.float32))
    return tf.cast(part, tf.int32)


def _inputs_with_one(factors: OuterFactors) -> tf.Tensor:
    """The inputs, and a one for the bias, whose gradient is the last row."""
    return with_ones(factors).inputs


def _matrices(block: Block, factors: Factors) -> tf.Tensor:
    if isinstance(factors, OuterFactors):
        inputs = _inputs_with_one(factors)
        return tf.matmul(inputs, factors.grads, transpose_a=True)
    return block.matrices(flat.rows((factors,)))
