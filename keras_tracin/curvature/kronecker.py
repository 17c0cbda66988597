"""Gradients cut into blocks that have a basis of Kronecker factors.

Synopsis:

    for block, factors in cut(captured.factors, groups):
        basis = eigenbasis(second_moments(block, factors), tf.float32)
        mean_squares = sum_of_squares(block, factors, basis) / count
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import DenseGradients, Factors, OuterFactors
from keras_tracin.gradients.flat import Groups, size_of

Basis = tuple[tf.Tensor, ...]  # (U_A, U_B), in columns; none for a diagonal

_LARGEST_SIDE = 8192  # of a kernel that is diagonalised
_LARGEST_EXACT = 512  # entries whose second moments are diagonalised whole


@dataclasses.dataclass(frozen=True)
class Block:
    """Adjacent entries of a row, as a matrix `[i, o]` or a diagonal.

    A single column is inverted exactly: its first moment is the whole block.

    Attributes:
        start: position of the first entry in a row.
        rows: i; 1 for a diagonal.
        columns: o.
        kronecker: whether its curvature has Kronecker factors, else it is
            taken to be diagonal.
    """

    start: int
    rows: int
    columns: int
    kronecker: bool

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.rows * self.columns


class LayerCurvature(Protocol):
    """The Gauss-Newton matrix of a network, block by block.

    It is the second moment of pseudo-gradients (see
    `keras_tracin.curvature.pseudo_gradients`), of which there are several for
    each example.
    """

    @property
    def dtype(self) -> tf.DType:
        """The type of vectors."""
        raise NotImplementedError

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of a row, in order."""
        raise NotImplementedError

    def draws(self, number: int | str, seed: int) -> Any:
        """Which pseudo-gradients the other methods take.

        Args:
            number: of each example, or "exact", or "auto".
            seed: of random ones.
        """
        raise NotImplementedError

    def moments(self, draws: Any) -> list[tuple[tf.Tensor, ...]]:
        """A `[i, i]` and B `[o, o]` of each block, up to a factor.

        None for a diagonal.
        """
        raise NotImplementedError

    def mean_squares(
        self, bases: Sequence[Basis], draws: Any
    ) -> list[tf.Tensor]:
        """Mean squares of the gradients in the blocks' bases, `[i, o]` each.

        Args:
            bases: one for each block.
            draws: those of `moments`.
        """
        raise NotImplementedError

    def penalty_diagonal(self) -> tf.Tensor:
        """The diagonal `[p]` of the weight regularisers' curvature."""
        raise NotImplementedError


def cut(
    factors: Sequence[Factors], groups: Groups
) -> list[tuple[Block, Factors]]:
    """Cuts gradients into blocks, each with its own factors.

    Args:
        factors: gradients, group by group.
        groups: the variables of each.
    """
    pairs: list[tuple[Block, Factors]] = []
    start = 0
    for group, variables in zip(factors, groups, strict=True):
        sizes = [size_of(variable) for variable in variables]
        if isinstance(group, OuterFactors):
            _, i, o = group.sizes
            block = Block(start, i + group.bias, o, True)
            if max(block.rows, block.columns) > _LARGEST_SIDE:
                block = Block(start, 1, sum(sizes), False)
            pairs.append((block, group))
            start += sum(sizes)
            continue
        parts: list[Factors] = [group]
        if isinstance(group, DenseGradients):
            parts = [DenseGradients((part,)) for part in group.parts]
        for part, variable in zip(parts, variables, strict=True):
            whole = isinstance(group, DenseGradients)
            pairs.append((_block_of(variable, start, whole), part))
            start += size_of(variable)
    return pairs


def _block_of(variable: Any, start: int, whole: bool) -> Block:
    """The block of one variable.

    Args:
        variable: the variable.
        start: position of its first entry in a row.
        whole: whether its gradients are at hand entry by entry.
    """
    size, last = size_of(variable), variable.shape[-1:] or (1,)
    i, o = size // last[0], last[0]
    if whole and size <= _LARGEST_EXACT:
        return Block(start, size, 1, True)
    if whole and min(i, o) > 1 and max(i, o) <= _LARGEST_SIDE:
        return Block(start, i, o, True)
    return Block(start, 1, size, False)


def second_moments(
    block: Block, factors: Factors, share: float = 1.0
) -> tuple[tf.Tensor, ...]:
    """A `[i, i]` and B `[o, o]` summed over a batch; none for a diagonal.

    Args:
        block: the block.
        factors: the batch's gradients.
        share: share of the examples whose inputs A is made of.
    """
    if not block.kronecker:
        return ()
    if isinstance(factors, OuterFactors):
        inputs = _inputs_with_one(factors)
        if share < 1:
            inputs = inputs[: _part_of(tf.shape(inputs)[0], share)]
        x = tf.reshape(inputs, [-1, block.rows])
        delta = tf.reshape(factors.grads, [-1, block.columns])
        return (
            tf.matmul(x, x, transpose_a=True),
            tf.matmul(delta, delta, transpose_a=True),
        )
    whole = _matrices(block, factors)
    return (
        tf.einsum("nio,njo->ij", whole, whole),
        tf.einsum("nio,niq->oq", whole, whole),
    )


def sum_of_squares(block: Block, factors: Factors, basis: Basis) -> tf.Tensor:
    """Squares of the gradients in the basis, `[i, o]` summed over a batch."""
    if not block.kronecker:
        return tf.reduce_sum(tf.square(flat.rows((factors,))), 0)[tf.newaxis]
    left, right = basis
    if isinstance(factors, OuterFactors) and _by_position(factors):
        x = tf.einsum("nti,ij->ntj", _inputs_with_one(factors), left)
        delta = tf.einsum("nto,oq->ntq", factors.grads, right)
        if factors.sizes[0] == 1:
            x, delta = tf.square(x[:, 0]), tf.square(delta[:, 0])
            return tf.matmul(x, delta, transpose_a=True)
        rotated = tf.matmul(x, delta, transpose_a=True)
    else:
        rotated = rotate(_matrices(block, factors), left, right)
    return tf.reduce_sum(tf.square(rotated), axis=0)


def _by_position(factors: OuterFactors) -> bool:
    """Whether sides are rotated at less cost than explicit gradients."""
    t, i, o = factors.sizes
    return t is None or t * (i * i + o * o) <= i * o * (i + o)


def _part_of(count: tf.Tensor, share: float) -> tf.Tensor:
    part = tf.math.ceil(share * tf.cast(count, tf.float32))
    return tf.cast(part, tf.int32)


def _inputs_with_one(factors: OuterFactors) -> tf.Tensor:
    """The inputs, and a one for the bias, whose gradient is the last row."""
    if not factors.bias:
        return factors.inputs
    one = tf.ones_like(factors.inputs[..., :1])
    return tf.concat([factors.inputs, one], axis=-1)


def _matrices(block: Block, factors: Factors) -> tf.Tensor:
    rows = flat.rows((factors,))
    return tf.reshape(rows, [-1, block.rows, block.columns])


def rotate(matrices, left, right) -> tf.Tensor:
    """`leftᵀ M right` of each `[i, o]`."""
    return tf.matmul(left, tf.matmul(matrices, right), transpose_a=True)


def eigenbasis(moments: Sequence[tf.Tensor], dtype: tf.DType) -> Basis:
    """The eigenvectors of A and B, found in float64."""
    left, right = (
        np.linalg.eigh(np.asarray(moment, np.float64))[1] for moment in moments
    )
    return tf.constant(left, dtype), tf.constant(right, dtype)


def rotate_diagonal(
    block: Block, basis: Basis, diagonal: tf.Tensor
) -> tf.Tensor:
    """The diagonal in the basis, `[i, o]`, of a matrix diagonal outside it.

    Args:
        block: the block.
        basis: its basis.
        diagonal: diagonal of the whole matrix, `[p]`.
    """
    part = diagonal[block.start : block.start + block.size]
    part = tf.reshape(part, [block.rows, block.columns])
    if not block.kronecker:
        return part
    left, right = map(tf.square, basis)
    return tf.matmul(tf.matmul(left, part, transpose_a=True), right)
