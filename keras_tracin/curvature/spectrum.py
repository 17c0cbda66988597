"""The ends of an operator's spectrum, from a few products with it.

Synopsis:

    ritz = lanczos(operator, steps=200)         # ritz.values, ritz.vectors
    smallest, largest = extreme_eigenvalues(operator)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator, matvec


@dataclasses.dataclass(frozen=True, eq=False)
class Ritz:
    """Approximate eigenpairs of a symmetric operator.

    Attributes:
        values: `[k]`, ascending, float64.
        vectors: `[k, p]`, orthonormal rows.
    """

    values: np.ndarray
    vectors: tf.Tensor


def lanczos(operator: Operator, steps: int, seed: int = 0) -> Ritz:
    """The eigenpairs of the operator within a Krylov space.

    Lanczos is what Arnoldi's iteration is for a symmetric operator. Each new
    vector is made orthogonal to all before, twice, so that none comes again.

    Args:
        operator: symmetric, p × p.
        steps: number of products with the operator; fewer where they exhaust
            the space.
        seed: seed of the space's first vector, which is random.
    """
    start = tf.random.stateless_normal(
        [operator.size], seed=[seed, 1], dtype=operator.dtype, alg="philox"
    )
    basis = [start / tf.norm(start)]
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    largest = 0.0
    for _ in range(min(steps, operator.size)):
        image = matvec(operator, basis[-1])
        diagonal.append(float(tf.tensordot(image, basis[-1], 1)))
        earlier = tf.stack(basis)
        for _ in range(2):
            image -= tf.linalg.matvec(
                earlier, tf.linalg.matvec(earlier, image), transpose_a=True
            )
        length = float(tf.norm(image))
        largest = max(largest, abs(diagonal[-1]), length)
        rounding = np.finfo(operator.dtype.as_numpy_dtype).eps
        if length <= 1e2 * rounding * largest:
            break
        off_diagonal.append(length)
        basis.append(image / length)
    count = len(diagonal)
    tridiagonal = np.diag(diagonal) + np.diag(off_diagonal[: count - 1], 1)
    tridiagonal += np.diag(off_diagonal[: count - 1], -1)
    values, rotation = np.linalg.eigh(tridiagonal)
    rotation = tf.constant(rotation, operator.dtype)
    vectors = tf.matmul(rotation, tf.stack(basis[:count]), transpose_a=True)
    return Ritz(values, vectors)


def extreme_eigenvalues(
    operator: Operator, steps: int = 20, seed: int = 0
) -> tuple[float, float]:
    """Estimates of the smallest and the largest eigenvalue, from within."""
    values = lanczos(operator, steps, seed).values
    return float(values[0]), float(values[-1])
