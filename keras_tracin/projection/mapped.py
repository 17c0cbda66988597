"""Sketches that are multiplied by a matrix, at each checkpoint its own.

Synopsis:

    shorter = Mapped(TensorSketch(65_536), [basis])     # [65,536, 1,024]
    shorter.sketch(captured.factors, position=0)        # [n, 1,024]
    basis = leading_directions(sketches, 1_024)         # of a sample of them
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import Factors

_NOTHING = 1e-6  # of the largest square, in the noise of float32


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

        if len(self.matrices) == 1:
            return times(self.matrices[0])
        # The matrices are large: the one in use is not copied.
        branches = [functools.partial(times, own) for own in self.matrices]
        return tf.switch_case(tf.cast(position, tf.int32), branches)


def leading_directions(rows: np.ndarray, dim: int) -> np.ndarray:
    """The directions `[width, dim]` in which rows are longest, or fewer.

    They are orthonormal: products of what is mapped by them lack only the
    share of other directions. There are no more than the rows span.

    Args:
        rows: a sample `[m, width]`.
        dim: number of directions, if there are so many.
    """
    gram = (rows @ rows.T).astype(np.float64)
    squares, vectors = np.linalg.eigh(gram)
    rank = np.count_nonzero(squares > squares[-1] * _NOTHING)
    best = slice(-1, -1 - max(1, min(dim, rank)), -1)
    scaled = vectors[:, best] / np.sqrt(np.maximum(squares[best], 1e-30))
    return rows.T @ scaled.astype(rows.dtype)
