"""Gradients cut into blocks that have a basis of Kronecker factors.

Synopsis:

    for block, factors in blocks_of(captured, groups):
        moments_of(block, factors)                  # what a basis is made of
        spectrum_of(block, factors, basis)          # squares within it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import DenseGradients, Factors, OuterFactors
from keras_tracin.gradients.flat import Groups, size_of

_LARGEST_SIDE = 8192  # of a kernel, to be diagonalised


@dataclasses.dataclass(frozen=True)
class Block:
    """Neighbouring numbers of a row, as a matrix `[i, o]` or a diagonal.

    Attributes:
        start: where they begin in a row.
        rows: i; 1 for a diagonal.
        columns: o.
        kronecker: whether there are bases to be found.
    """

    start: int
    rows: int
    columns: int
    kronecker: bool

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.rows * self.columns


def blocks_of(
    factors: Sequence[Factors], groups: Groups
) -> list[tuple[Block, Factors]]:
    """Each block of a row, with the factors of its gradients."""
    pairs: list[tuple[Block, Factors]] = []
    start = 0
    for found, variables in zip(factors, groups, strict=True):
        sizes = [size_of(variable) for variable in variables]
        if isinstance(found, OuterFactors):
            _, i, o = found.sizes
            block = Block(start, i + found.bias, o, True)
            if max(block.rows, block.columns) > _LARGEST_SIDE:
                block = Block(start, 1, sum(sizes), False)
            pairs.append((block, found))
            start += sum(sizes)
            continue
        parts = found.parts if isinstance(found, DenseGradients) else [found]
        for part, variable in zip(parts, variables, strict=True):
            size, last = size_of(variable), variable.shape[-1:] or (1,)
            i, o = size // last[0], last[0]
            whole = isinstance(found, DenseGradients) and min(i, o) > 1
            if whole and max(i, o) <= _LARGEST_SIDE:
                block = Block(start, i, o, True)
            else:
                block = Block(start, 1, size, False)
            if isinstance(found, DenseGradients):
                part = DenseGradients((part,))
            pairs.append((block, part))
            start += size
    return pairs


def moments_of(block: Block, factors: Factors) -> tuple[tf.Tensor, ...]:
    """What the bases are made of, summed over a batch: A and B."""
    if not block.kronecker:
        return ()
    if isinstance(factors, OuterFactors):
        x = tf.reshape(_with_one(factors), [-1, block.rows])
        delta = tf.reshape(factors.grads, [-1, block.columns])
        return (
            tf.matmul(x, x, transpose_a=True),
            tf.matmul(delta, delta, transpose_a=True),
        )
    whole = _whole(block, factors)
    return (
        tf.einsum("nio,njo->ij", whole, whole),
        tf.einsum("nio,niq->oq", whole, whole),
    )


def spectrum_of(block: Block, factors: Factors, basis) -> tf.Tensor:
    """Squares of the gradients in the basis, `[i, o]` summed over a batch."""
    if not block.kronecker:
        return tf.reduce_sum(tf.square(flat.rows((factors,))), 0)[tf.newaxis]
    left, right = basis
    if isinstance(factors, OuterFactors):
        x = tf.einsum("nti,ij->ntj", _with_one(factors), left)
        delta = tf.einsum("nto,oq->ntq", factors.grads, right)
        if factors.sizes[0] == 1:
            x, delta = tf.square(x[:, 0]), tf.square(delta[:, 0])
            return tf.matmul(x, delta, transpose_a=True)
        turned = tf.matmul(x, delta, transpose_a=True)
    else:
        turned = rotated(_whole(block, factors), left, right)
    return tf.reduce_sum(tf.square(turned), axis=0)


def _with_one(factors: OuterFactors) -> tf.Tensor:
    """The inputs, and one for the bias: its gradient is the last row."""
    if not factors.bias:
        return factors.inputs
    one = tf.ones_like(factors.inputs[..., :1])
    return tf.concat([factors.inputs, one], axis=-1)


def _whole(block: Block, factors: Factors) -> tf.Tensor:
    rows = flat.rows((factors,))
    return tf.reshape(rows, [-1, block.rows, block.columns])


def rotated(matrices, left, right) -> tf.Tensor:
    """`leftᵀ M right` of each `[i, o]`."""
    return tf.einsum("ij,nio,oq->njq", left, matrices, right)


def basis_of(moments, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    left, right = (
        np.linalg.eigh(np.asarray(moment, np.float64))[1] for moment in moments
    )
    return tf.constant(left, dtype), tf.constant(right, dtype)


def rotated_diagonal(block: Block, basis, diagonal: tf.Tensor) -> tf.Tensor:
    """The diagonal, in the basis, of a matrix that is diagonal outside it."""
    part = diagonal[block.start : block.start + block.size]
    part = tf.reshape(part, [block.rows, block.columns])
    if not block.kronecker:
        return part
    left, right = map(tf.square, basis)
    return tf.matmul(tf.matmul(left, part, transpose_a=True), right)
