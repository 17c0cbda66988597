"""Symmetric operators that are known by what they do to vectors.

Vectors are rows: many of them are `[m, p]`. Solvers take operators and nothing
else, so what is true for a plain matrix is true for a network's curvature.

Synopsis:

    damped = Damped(Matrix(a), 0.01)
    damped.matmat(vectors)                      # [m, p] -> [m, p]
    damped.sample(rng, 64).matmat(vectors)      # the same in expectation
"""

from __future__ import annotations

import dataclasses
import numbers
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.kronecker import LayerCurvature


class Operator(Protocol):
    """A symmetric p × p matrix that is known by its products.

    Solvers ask it what else it is (`damping`, `undamped`, `by_layer`,
    `nearby`). A class that inherits from this one answers as a plain matrix
    does.
    """

    @property
    def size(self) -> int:
        """Number of rows, p."""
        raise NotImplementedError

    @property
    def dtype(self) -> tf.DType:
        """The type of its vectors."""
        raise NotImplementedError

    def matmat(self, vectors: tf.Tensor) -> tf.Tensor:
        """The product with each row of `vectors [m, p]`."""
        raise NotImplementedError

    def sample(self, rng: np.random.Generator, batch_size: int) -> Operator:
        """A random operator whose expectation is this one."""
        raise NotImplementedError

    @property
    def damping(self) -> float:
        """λ where it is `A + λI` for another operator A, else 0."""
        return 0.0

    @property
    def undamped(self) -> Operator:
        """A where it is `A + λI`, else itself."""
        return self

    @property
    def by_layer(self) -> LayerCurvature | None:
        """Its blocks, if it is the Gauss-Newton matrix of a network."""
        return None

    @property
    def nearby(self) -> LayerCurvature | None:
        """Blocks of a Gauss-Newton matrix near it, to precondition with."""
        return self.by_layer


def matvec(operator: Operator, vector: tf.Tensor) -> tf.Tensor:
    """The product with one vector `[p]`."""
    return operator.matmat(tf.convert_to_tensor(vector)[tf.newaxis])[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix(Operator):
    """A matrix `[p, p]` in memory, as an operator.

    It is its own sample.
    """

    matrix: tf.Tensor

    def __post_init__(self):
        object.__setattr__(self, "matrix", tf.convert_to_tensor(self.matrix))

    @property
    def size(self) -> int:
        """Number of rows, p."""
        return self.matrix.shape[0]

    @property
    def dtype(self) -> tf.DType:
        """The type of its vectors."""
        return self.matrix.dtype

    def matmat(self, vectors: tf.Tensor) -> tf.Tensor:
        """The product with each row of `vectors [m, p]`."""
        return tf.matmul(vectors, self.matrix, transpose_b=True)

    def sample(self, rng: np.random.Generator, batch_size: int) -> Matrix:
        """The matrix itself."""
        return self


@dataclasses.dataclass(frozen=True, eq=False)
class Damped:
    """`A + λI`: the operator with every eigenvalue raised by λ.

    Attributes:
        undamped: `A`.
        damping: `λ`, not negative.

    Raises:
        ValueError: if `damping` is negative or not finite.
    """

    undamped: Operator
    damping: float

    def __post_init__(self):
        check_damping(self.damping)

    @property
    def size(self) -> int:
        """Number of rows, p."""
        return self.undamped.size

    @property
    def dtype(self) -> tf.DType:
        """The type of its vectors."""
        return self.undamped.dtype

    @property
    def by_layer(self) -> None:
        """None: damping is no part of the blocks of `undamped`."""

    @property
    def nearby(self) -> None:
        """None: as `by_layer`."""

    def matmat(self, vectors: tf.Tensor) -> tf.Tensor:
        """The product with each row of `vectors [m, p]`."""
        vectors = tf.convert_to_tensor(vectors, self.dtype)
        return self.undamped.matmat(vectors) + self.damping * vectors

    def sample(self, rng: np.random.Generator, batch_size: int) -> Damped:
        """The operator's sample, with the same damping."""
        return Damped(self.undamped.sample(rng, batch_size), self.damping)


def check_damping(damping: float | str) -> None:
    """Raises ValueError unless λ is a finite number of zero or more."""
    is_number = isinstance(damping, numbers.Real)
    if not (is_number and 0 <= float(damping) < float("inf")):
        raise ValueError(
            "`damping` should be a finite number of 0 or more: it is added to "
            f"the eigenvalues of the curvature. Received: {damping!r}."
        )
