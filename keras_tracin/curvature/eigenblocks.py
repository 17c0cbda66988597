"""A curvature that is diagonal in a basis of each block, as EK-FAC fits it.

Synopsis:

    fitted = fit_eigenblocks(layers, lambda: [draws])   # at present weights
    fitted = fit_eigenblocks(layers, visits)            # mean over several
    (solved,) = fitted.apply(rows, tf.math.reciprocal)  # a function of it
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from keras_tracin.curvature.kronecker import (
    Basis,
    Block,
    LayerCurvature,
    bases_of,
    eigenbasis,
    rotate,
    rotate_diagonal,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Eigenblocks:
    """A symmetric matrix, block by block.

    Attributes:
        blocks: the blocks of a row.
        bases: U_A and U_B of each, of sides that have a basis.
        eigenvalues: `[i, o]` of each.
    """

    blocks: tuple[Block, ...]
    bases: tuple[Basis, ...]
    eigenvalues: tuple[tf.Tensor, ...]

    def apply(
        self, rows: tf.Tensor, *functions: Callable[[tf.Tensor], tf.Tensor]
    ) -> list[tf.Tensor]:
        """Functions of the matrix times each row of `[m, p]`.

        Args:
            rows: the vectors.
            *functions: of eigenvalues, `[i, o] -> [i, o]`.

        Returns:
            `[m, p]` for each function.
        """
        products: list[list[tf.Tensor]] = [[] for _ in functions]
        for block, basis, values in zip(
            self.blocks, self.bases, self.eigenvalues, strict=True
        ):
            part = rows[:, block.start : block.start + block.size]
            left, right = bases_of(block, basis)
            rotated = rotate(block.matrices(part), left, right)
            back = [u if u is None else tf.transpose(u) for u in (left, right)]
            for parts, function in zip(products, functions, strict=True):
                product = rotate(rotated * function(values), *back)
                parts.append(block.entries(product))
        return [tf.concat(parts, axis=1) for parts in products]

    def scaled(
        self, factor: float, diagonal: tf.Tensor | None = None
    ) -> Eigenblocks:
        """A multiple of the matrix, and a diagonal added to it.

        Args:
            factor: the multiple.
            diagonal: `[p]`; what it has beside the diagonal in the basis of a
                block is left out.
        """
        values = [factor * own for own in self.eigenvalues]
        if diagonal is not None:
            values = [
                own + rotate_diagonal(block, basis, diagonal)
                for own, block, basis in zip(
                    values, self.blocks, self.bases, strict=True
                )
            ]
        return dataclasses.replace(self, eigenvalues=tuple(values))


def fit_eigenblocks(
    layers: LayerCurvature, visits: Callable[[], Iterable[Any]]
) -> Eigenblocks:
    """Fits bases and eigenvalues to the mean curvature at several weights.

    The bases are those of the mean moments, and the eigenvalues the mean
    squares of gradients in these bases (George et al. 2018). Regularisers are
    left out.

    Args:
        layers: the curvature at the weights that the model has.
        visits: begins a pass over the weights, in which the model has others
            at each step; yields pseudo-gradients, of `layers.draws`.
    """
    moments = mean(layers.moments(draws) for draws in visits())
    bases = [eigenbasis(sides, layers.dtype) for sides in moments]
    squares = mean(layers.mean_squares(bases, draws) for draws in visits())
    return Eigenblocks(layers.blocks, tuple(bases), tuple(squares))


def mean(values: Iterable[Any]) -> Any:
    """The mean of structures of tensors, of which two are held at a time."""
    total: Any = None
    count = 0
    for value in values:
        total = (
            value
            if total is None
            else tf.nest.map_structure(tf.add, total, value)
        )
        count += 1
    if count == 1:
        return total
    return tf.nest.map_structure(lambda x: x / count, total)
