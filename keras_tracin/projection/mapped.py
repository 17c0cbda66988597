"""Maps that are fitted to the gradients they are for, as projections.

They lose less than random ones of the same length, but are as many numbers as
their matrices have.

Synopsis:

    shorter = Mapped(Entries([chosen], 109_386), [basis])   # [65,536, 1,024]
    shorter.sketch(captured.factors, position=0)    # [n, 1,024]
    basis = leading_directions(sample, 1_024)       # of rows [m, 65,536]
    basis @= rotation(1_024)                        # products are the same
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import Factors

_NOTHING = 1e-6  # of the largest square, in the noise of float32


@dataclasses.dataclass(frozen=True, eq=False)
class Entries:
    """Some entries of a gradient, as its projection.

    Attributes:
        chosen: places of the entries at each position, `[dim]`; None for all
            of them.
        size: number of entries of a gradient.
    """

    chosen: Sequence[tf.Tensor] | None
    size: int

    @property
    def dim(self) -> int:
        """Number of entries that are kept."""
        return self.size if self.chosen is None else self.chosen[0].shape[0]

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """The entries `[n, dim]` of `n` examples' gradients.

        Args:
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        rows = flat.rows(factors)
        if self.chosen is None:
            return rows
        return at_position(
            self.chosen, position, lambda own: tf.gather(rows, own, axis=1)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Mapped:
    """A projection followed by a linear map.

    Attributes:
        projection: makes the sketches that are mapped.
        matrices: for each position a matrix `[projection.dim, dim]`, in whose
            precision the product is.
    """

    projection: Any
    matrices: Sequence[tf.Tensor]

    @property
    def dim(self) -> int:
        """Length of what is made."""
        return self.matrices[0].shape[1]

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Mapped sketches `[n, dim]` of `n` examples' gradients.

        Args:
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        sketches = self.projection.sketch(factors, position)

        def times(matrix: tf.Tensor) -> tf.Tensor:
            product = tf.matmul(tf.cast(sketches, matrix.dtype), matrix)
            return tf.cast(product, sketches.dtype)

        return at_position(self.matrices, position, times)


def at_position(
    held: Sequence[Any],
    position: tf.Tensor | int,
    use: Callable[[Any], tf.Tensor],
) -> tf.Tensor:
    """What is made of the tensors at a position, which are not copied.

    Args:
        held: tensors of each position, or structures of them.
        position: the position.
        use: makes something of them.
    """
    if len(held) == 1:
        return use(held[0])
    branches = [functools.partial(use, own) for own in held]
    return tf.switch_case(tf.cast(position, tf.int32), branches)


def leading_directions(rows: np.ndarray, dim: int) -> np.ndarray:
    """The directions `[width, dim]` in which rows are longest.

    They are orthonormal: products of what is mapped by them lack only the
    share of other directions. Those beyond the span of the rows are zero.

    Args:
        rows: a sample `[m, width]`.
        dim: number of directions, if there are so many rows.
    """
    gram = (rows @ rows.T).astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)
    squares, vectors = squares[::-1][:dim], vectors[:, ::-1][:, :dim]
    real = squares > squares[0] * _NOTHING
    roots = np.sqrt(np.where(real, squares, 1.0))
    return rows.T @ (vectors * (real / roots)).astype(rows.dtype)


def rotation(dim: int) -> np.ndarray:
    """A random rotation `[dim, dim]`, always the same one, in float64.

    It leaves products as they are. Entries of what is rotated are of one size,
    so that a row loses little where all of them are rounded by one scale.

    Args:
        dim: number of entries.
    """
    gaussian = np.random.default_rng(0).normal(size=(dim, dim))
    return np.linalg.qr(gaussian)[0]
