"""Gradients cut into blocks that have a basis of Kronecker factors.

Synopsis:

    for block, factors in cut(captured.factors, groups):
        basis = eigenbasis(moments, tf.float32)
        rotate(block.matrices(rows), *bases_of(block, basis))
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    KernelAxes,
    LookupFactors,
    OuterFactors,
    TableFactors,
)
from keras_tracin.gradients.flat import Groups, size_of

Basis = tuple[tf.Tensor, ...]  # U_A and U_B, in columns, of sides that have one

_LARGEST_SIDE = 8192  # of a kernel that is diagonalised
# A side as large as this, and as many times as wide as the other, keeps a
# diagonal: its basis would cost more than all of the rest.
_LARGE_SIDE, _TIMES = 2048, 8
_LARGEST_EXACT = 512  # entries whose second moments are diagonalised whole


@dataclasses.dataclass(frozen=True)
class Block:
    """Adjacent entries of a row, as a matrix `[i, o]` or a diagonal.

    A single column is inverted exactly: its first moment is the whole block.

    Attributes:
        start: position of the first entry in a row.
        rows: i; 1 for a diagonal.
        columns: o.
        left: whether A, of the rows, has a basis; else it is diagonal.
        right: whether B, of the columns, has one.
        axes: how the kernel stores its entries, if not as rows and columns.
    """

    start: int
    rows: int
    columns: int
    left: bool
    right: bool
    axes: KernelAxes | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.rows * self.columns

    @property
    def sides(self) -> tuple[int, ...]:
        """The sizes of the sides that have a basis."""
        pairs = (self.rows, self.left), (self.columns, self.right)
        return tuple(size for size, has_basis in pairs if has_basis)

    def matrices(self, entries: tf.Tensor) -> tf.Tensor:
        """Entries `[..., size]` of rows as matrices `[n, i, o]`."""
        if self.axes is not None:
            kernel = math.prod(self.axes.sizes)
            entries = tf.reshape(entries, [-1, self.size])
            loaded = self.axes.load(entries[:, :kernel])
            entries = tf.concat([loaded, entries[:, kernel:]], axis=1)
        return tf.reshape(entries, [-1, self.rows, self.columns])

    def entries(self, matrices: tf.Tensor) -> tf.Tensor:
        """Matrices `[n, i, o]` as entries `[n, size]` of rows."""
        flat_rows = tf.reshape(matrices, [-1, self.size])
        if self.axes is None:
            return flat_rows
        kernel = math.prod(self.axes.sizes)
        stored = self.axes.store(flat_rows[:, :kernel])
        return tf.concat([stored, flat_rows[:, kernel:]], axis=1)


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

        Of sides that have a basis alone.
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
        if isinstance(group, DenseGradients):
            for part, variable in zip(group.parts, variables, strict=True):
                block = _block_of(variable, start)
                pairs.append((block, DenseGradients((part,))))
                start += block.size
        else:
            pairs.append((_block_with_sides(group, start), group))
            start += sum(sizes)
    return pairs


def _block_with_sides(factors: Factors, start: int) -> Block:
    """The block of a kernel or a table, whose sides are at hand.

    The look-ups of a table are exactly diagonal by its rows.

    Args:
        factors: its gradients.
        start: position of its first entry in a row.
    """
    if isinstance(factors, LookupFactors):
        rows, columns = factors.vocabulary, factors.grads.shape[-1]
        return Block(start, rows, columns, False, columns <= _LARGEST_SIDE)
    if isinstance(factors, TableFactors):
        _, rows, columns = factors.outer.sizes
        return Block(start, rows, columns, False, columns <= _LARGEST_SIDE)
    assert isinstance(factors, OuterFactors)
    _, i, columns = factors.sizes
    rows = i + factors.bias
    left, right = _has_basis(rows, columns), _has_basis(columns, rows)
    return Block(start, rows, columns, left, right, factors.axes)


def _has_basis(side: int, other: int) -> bool:
    return side <= max(_LARGE_SIDE, min(_LARGEST_SIDE, _TIMES * other))


def _block_of(variable: Any, start: int) -> Block:
    """The block of a variable whose gradients are at hand entry by entry.

    Args:
        variable: the variable.
        start: position of its first entry in a row.
    """
    size, last = size_of(variable), variable.shape[-1:] or (1,)
    i, o = size // last[0], last[0]
    if size <= _LARGEST_EXACT:
        return Block(start, size, 1, True, True)
    if min(i, o) > 1 and max(i, o) <= _LARGEST_SIDE:
        return Block(start, i, o, True, True)
    return Block(start, 1, size, False, False)


def bases_of(
    block: Block, basis: Basis
) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """`(U_A, U_B)`, None for a side that has no basis."""
    given = iter(basis)
    left = next(given) if block.left else None
    return left, next(given) if block.right else None


def rotate(
    matrices: tf.Tensor, left: tf.Tensor | None, right: tf.Tensor | None
) -> tf.Tensor:
    """`leftᵀ M right` of each `[i, o]`; None stands for the unit matrix."""
    if right is not None:
        matrices = tf.einsum("nio,op->nip", matrices, right)
    if left is not None:
        matrices = tf.einsum("nio,ia->nao", matrices, left)
    return matrices


def eigenbasis(moments: Sequence[tf.Tensor], dtype: tf.DType) -> Basis:
    """The eigenvectors of A and B, found in float64."""
    return tuple(
        tf.constant(np.linalg.eigh(np.asarray(moment, np.float64))[1], dtype)
        for moment in moments
    )


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
    squares = (
        side if side is None else tf.square(side)
        for side in bases_of(block, basis)
    )
    return rotate(block.matrices(part), *squares)[0]
