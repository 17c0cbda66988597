"""The matrix itself, for networks of a few thousand weights.

Synopsis:

    solution = solve(Damped(hessian, 0.01), gradients, Exact())
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy
import tensorflow as tf

from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.solution import Solution

_ROWS = 256  # of the matrix, computed at a time


@dataclasses.dataclass(frozen=True)
class Exact:
    """Solves by the whole matrix: a Cholesky factorisation in float64.

    Where the matrix is not positive definite, by its eigenvalues.

    Attributes:
        max_size: the largest p that is accepted.
    """

    max_size: int = 10_000

    def prepare(self, operator: Operator) -> ExactInverse:
        """Computes the matrix and factorises it.

        Args:
            operator: the matrix to invert, damping included.

        Raises:
            ValueError: if p is above `max_size`.
        """
        size = operator.size
        if size > self.max_size:
            raise ValueError(
                f"`Exact` makes the whole matrix: {size:,} × {size:,} numbers "
                f"take {16 * size**2 / 2**30:,.1f} GB with their "
                f"factorisation. Expected at most {self.max_size:,} rows. Use "
                "`CG()`, `Arnoldi()` or `EKFAC()`, name fewer "
                "`layers=`, or raise `max_size`."
            )
        matrix = as_matrix(operator)
        try:
            factor = scipy.linalg.cho_factor(
                matrix, lower=True, check_finite=False
            )
        except np.linalg.LinAlgError:
            values, vectors = np.linalg.eigh(matrix)
            return ExactInverse(operator.dtype, None, values, vectors)
        return ExactInverse(operator.dtype, factor)


def as_matrix(operator: Operator) -> np.ndarray:
    """The operator written out, `[p, p]` in float64, made symmetric."""
    size = operator.size
    rows = []
    for start in range(0, size, _ROWS):
        unit = np.eye(min(_ROWS, size - start), size, start)
        unit = tf.constant(unit, operator.dtype)
        rows.append(operator.matmat(unit).numpy().astype(np.float64))
    matrix = np.concatenate(rows)
    return (matrix + matrix.T) / 2


@dataclasses.dataclass(frozen=True, eq=False)
class ExactInverse:
    """A factorised matrix: by Cholesky, or by its eigenvalues.

    Attributes:
        dtype: type of the vectors.
        factor: Cholesky's factor, or None.
        eigenvalues: `[p]`, ascending, where `factor` is None.
        eigenvectors: `[p, p]`, in columns, where `factor` is None.
    """

    dtype: tf.DType
    factor: tuple | None
    eigenvalues: np.ndarray | None = None
    eigenvectors: np.ndarray | None = None

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        right = np.asarray(rhs, np.float64).T
        negative = self.factor is None
        if self.factor is not None:
            value = scipy.linalg.cho_solve(
                self.factor, right, check_finite=False
            )
            solved = np.ones(len(rhs), bool)
        else:
            value, solved = self._solve_by_eigenvalues(right)
        return Solution(
            value=tf.constant(value.T, self.dtype),
            converged=solved,
            steps=0,
            residual=np.full(len(rhs), np.nan),
            negative_curvature=negative,
        )

    def _solve_by_eigenvalues(self, right) -> tuple[np.ndarray, np.ndarray]:
        values, vectors = self.eigenvalues, self.eigenvectors
        assert values is not None
        assert vectors is not None
        floor = np.abs(values).max() * len(values) * np.finfo(np.float64).eps
        usable = np.abs(values) > floor
        inverse = np.where(usable, 1 / np.where(usable, values, 1), 0)
        shares = vectors.T @ right
        lost = np.linalg.norm(shares[~usable], axis=0)
        whole = np.linalg.norm(right, axis=0)
        return vectors @ (inverse[:, None] * shares), lost <= 1e-8 * whole
