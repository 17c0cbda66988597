"""Second moments of a block's gradients: of its sides, and in its basis.

Synopsis:

    for block, factors in cut(captured.factors, groups):
        basis = eigenbasis(second_moments(block, factors), tf.float32)
        mean_squares = sum_of_squares(block, factors, basis) / count
    for block, factors in cut(captured.factors, groups):
        weighted_squares(block, factors, basis, 1 / eigenvalues)    # [n]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeGuard

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
        squares = _squares_of_rows(factors, right)
        return tf.math.unsorted_segment_sum(squares, factors.ids, block.rows)
    if _is_one_product(factors):
        x, delta = _squared_sides(factors, left, right)
        return tf.matmul(x, delta, transpose_a=True)
    if _is_large(factors, block):
        sides, gradient = _in_turn(factors, left, right)
        return tf.foldl(
            lambda total, example: total + tf.square(gradient(example)),
            sides,
            tf.zeros([block.rows, block.columns], sides[0].dtype),
            parallel_iterations=1,
        )
    columns = _columns_in_basis(block, factors, left, right)
    return tf.transpose(tf.reduce_sum(tf.square(columns), axis=0))


def weighted_squares(
    block: Block, factors: Factors, basis: Basis, weights: tf.Tensor
) -> tf.Tensor:
    """A weighted sum of each gradient's squares in the basis, `[n]`.

    With one over the eigenvalues for weights it is the gradient's product with
    the inverse of the block. As large things as by `sum_of_squares` are made.

    Args:
        block: the block.
        factors: the gradients of a batch, in the block's own form.
        basis: its basis.
        weights: `[i, o]`.
    """
    if isinstance(factors, DenseGradients) and not block.sides:
        return tf.reduce_sum(weights * tf.square(factors.parts[0]), axis=1)
    left, right = bases_of(block, basis)
    if isinstance(factors, LookupFactors):
        squares = _squares_of_rows(factors, right)
        own = tf.gather(weights, factors.ids)
        return tf.reduce_sum(own * squares, axis=[1, 2])
    if _is_one_product(factors):
        x, delta = _squared_sides(factors, left, right)
        return tf.reduce_sum(tf.matmul(x, weights) * delta, axis=1)
    if _is_large(factors, block):
        sides, gradient = _in_turn(factors, left, right)
        return tf.map_fn(
            lambda example: tf.reduce_sum(
                weights * tf.square(gradient(example))
            ),
            sides,
            parallel_iterations=1,
            fn_output_signature=tf.TensorSpec([], weights.dtype),
        )
    columns = _columns_in_basis(block, factors, left, right)
    return tf.reduce_sum(
        tf.transpose(weights) * tf.square(columns), axis=[1, 2]
    )


def in_basis(block: Block, factors: Factors, basis: Basis) -> tf.Tensor:
    """The gradients `[n, i, o]` of a block's basis, U_Aᵀ g U_B.

    Args:
        block: the block.
        factors: the gradients of a batch, in the block's own form.
        basis: its basis.
    """
    columns = _columns_in_basis(block, factors, *bases_of(block, basis))
    return tf.transpose(columns, [0, 2, 1])


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


def _is_one_product(factors: Factors) -> TypeGuard[OuterFactors]:
    """Whether each gradient is the outer product of two vectors."""
    return isinstance(factors, OuterFactors) and factors.sizes[0] == 1


def _squared_sides(
    factors: OuterFactors, left: tf.Tensor | None, right: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor]:
    """Squares of both vectors in the basis, `[n, i]` and `[n, o]`."""
    inputs = _times(_inputs_with_one(factors), left)
    grads = _times(factors.grads, right)
    return tf.square(inputs[:, 0]), tf.square(grads[:, 0])


def _is_large(
    factors: Factors, block: Block
) -> TypeGuard[OuterFactors | TableFactors]:
    """Whether gradients are too large to have those of a batch at once."""
    return isinstance(factors, TableFactors) or (
        isinstance(factors, OuterFactors) and len(block.sides) < 2
    )


def _in_turn(
    factors: OuterFactors | TableFactors,
    left: tf.Tensor | None,
    right: tf.Tensor | None,
) -> tuple[tuple[tf.Tensor, ...], Callable[[Sequence[tf.Tensor]], tf.Tensor]]:
    """The parts of gradients, and what makes one of its example's parts.

    Returns:
        Tensors `[n, ...]`, and a function of those of one example that returns
        its gradient `[i, o]` in the basis.
    """
    if isinstance(factors, OuterFactors):
        inputs = _times(_inputs_with_one(factors), left)
        return (inputs, _times(factors.grads, right)), _product
    outer, looked_up = factors.outer, factors.looked_up

    def gradient(example: Sequence[tf.Tensor]) -> tf.Tensor:
        inputs, grads, ids, rows = example
        product = _product([inputs, grads])
        return tf.tensor_scatter_nd_add(product, ids[:, tf.newaxis], rows)

    return (
        outer.inputs,
        _times(outer.grads, right),
        looked_up.ids,
        _times(looked_up.grads, right),
    ), gradient


def _product(example: Sequence[tf.Tensor]) -> tf.Tensor:
    inputs, grads = example
    return tf.matmul(inputs, grads, transpose_a=True)


def _columns_in_basis(
    block: Block,
    factors: Factors,
    left: tf.Tensor | None,
    right: tf.Tensor | None,
) -> tf.Tensor:
    """Transposed gradients `[n, o, i]` in the basis, U_Bᵀ gᵀ U_A.

    A side is rotated before the sum over the positions if these are few, else
    after it.
    """
    if not isinstance(factors, OuterFactors):
        columns = tf.transpose(_matrices(block, factors), [0, 2, 1])
        return rotate(columns, right, left)
    positions, i, o = factors.sizes
    inputs, grads = _inputs_with_one(factors), factors.grads
    if positions is None or positions <= o:
        inputs, left = _times(inputs, left), None
    if positions is None or positions <= i:
        grads, right = _times(grads, right), None
    # This order of the sides takes half of the time of the other.
    columns = tf.matmul(grads, inputs, transpose_a=True)
    return rotate(columns, right, left)


def _times(side: tf.Tensor, basis: tf.Tensor | None) -> tf.Tensor:
    return side if basis is None else tf.einsum("nti,ij->ntj", side, basis)


def _squares_of_rows(
    factors: LookupFactors, right: tf.Tensor | None
) -> tf.Tensor:
    """Squares `[n, t, o]` of looked-up rows in the basis.

    A row that is looked up twice has one gradient, whose square is shared.
    """
    ids, grads = factors.ids, _times(factors.grads, right)
    same = tf.equal(ids[:, :, tf.newaxis], ids[:, tf.newaxis])
    sums = tf.matmul(tf.cast(same, grads.dtype), grads)  # at each look-up
    count = tf.reduce_sum(tf.cast(same, grads.dtype), axis=2, keepdims=True)
    return tf.square(sums) / count


def _part_of(count: tf.Tensor, share: float) -> tf.Tensor:
    part = tf.math.ceil(share * tf.cast(count, tf.float32))
    return tf.cast(part, tf.int32)


def _inputs_with_one(factors: OuterFactors) -> tf.Tensor:
    """The inputs, and a one for the bias, whose gradient is the last row."""
    return with_ones(factors).inputs


def _matrices(block: Block, factors: Factors) -> tf.Tensor:
    return block.matrices(flat.rows((factors,)))
