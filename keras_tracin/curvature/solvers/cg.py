"""Conjugate gradients for many right-hand sides at once.

Synopsis:

    solution = solve(Damped(hessian, 0.01), gradients, CG(tol=1e-6))
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.solution import Solution, residuals


@dataclasses.dataclass(frozen=True)
class CG:
    """Block conjugate gradients (O'Leary 1980; Dubrulle 2001, BCGrQ).

    All right-hand sides search one common space, to which each step adds a
    vector for each of them. This takes far fewer steps than solving them one
    by one, and each step multiplies all vectors at once. Where a direction of
    negative curvature turns up, there is no minimum to go to: the solver stops
    with what it has, as in truncated Newton methods (Steihaug 1983).

    Attributes:
        tol: residual to stop at, relative to the right-hand side.
        max_steps: largest number of products with the operator.
    """

    tol: float = 1e-4
    max_steps: int = 500

    def __post_init__(self):
        if not self.tol > 0 or self.max_steps < 1:
            raise ValueError(
                "`tol` should be above 0 and `max_steps` 1 or more. Received: "
                f"tol={self.tol!r}, max_steps={self.max_steps!r}."
            )

    def prepare(self, operator: Operator) -> CGInverse:
        """Keeps the operator; there is nothing to compute beforehand.

        Args:
            operator: the matrix to invert, damping included.
        """
        return CGInverse(operator, self)


@dataclasses.dataclass(frozen=True, eq=False)
class CGInverse:
    """Conjugate gradients on one operator."""

    operator: Operator
    solver: CG

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        value = tf.zeros_like(rhs)
        residual = np.asarray(tf.norm(rhs, axis=1) > 0, np.float64)
        steps, negative = 0, False
        while steps < self.solver.max_steps:
            before = residual.max(initial=0)
            if before <= self.solver.tol:
                break
            # Starting again from the true residual leaves behind the rounding
            # errors that have added up.
            left = rhs - self.operator.matmat(value) if steps else rhs
            added, taken, negative = self._run(
                left, tf.norm(rhs, axis=1), steps
            )
            steps += taken
            trial = value + added
            after = residuals(self.operator, trial, rhs)
            # Steps along positive curvature count, whatever is left of them.
            better = (after < residual) | negative
            value = tf.where(better[:, None], trial, value)
            residual = np.where(better, after, residual)
            if negative or residual.max(initial=0) > before / 2:
                break
        return Solution(
            value=value,
            converged=residual <= self.solver.tol,
            steps=steps,
            residual=residual,
            negative_curvature=negative,
        )

    def _run(self, rhs, scale, used: int) -> tuple[tf.Tensor, int, bool]:
        """Runs from zero, until it converges or a curvature is negative.

        In Dubrulle's notation, transposed: `q` is an orthonormal basis of the
        residuals, `share` their coordinates in it, `search` the directions.

        Args:
            rhs: right-hand sides, `[m, p]`.
            scale: lengths that residuals are relative to, `[m]`.
            used: number of steps taken before.

        Returns:
            The solutions, the number of steps, and whether a curvature was
            negative.
        """
        q, share = _orthonormalize(rhs)
        search, value = q, tf.zeros_like(rhs)
        steps = 0
        while steps < self.solver.max_steps - used:
            steps += 1
            image = self.operator.matmat(search)
            curvature = tf.matmul(search, image, transpose_b=True)
            curvature = (curvature + tf.transpose(curvature)) / 2
            curvature = tf.cast(curvature, tf.float64)
            values, vectors = np.linalg.eigh(curvature.numpy())
            size = np.abs(values).max()
            if not np.isfinite(size) or size == 0:
                break
            negative = bool(values[0] < -1e-6 * size)
            usable = np.abs(values) > 1e-12 * size
            if negative:
                usable = values > 1e-6 * size
            inverse = np.where(usable, 1 / np.where(usable, values, 1), 0)
            step = tf.constant((vectors * inverse) @ vectors.T, rhs.dtype)
            value += tf.matmul(share, tf.matmul(step, search), transpose_a=True)
            if negative:
                return value, steps, True
            q, change = _orthonormalize(q - tf.matmul(step, image))
            share = tf.matmul(change, share)
            search = q + tf.matmul(change, search)
            left = tf.math.divide_no_nan(tf.norm(share, axis=0), scale)
            if not np.isfinite(left).all() or (
                float(tf.reduce_max(left)) <= self.solver.tol / 2
            ):
                break
        return value, steps, False


def _orthonormalize(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns orthonormal `q [k, p]` and `share [k, m]`: `rows = shareᵀ q`."""
    q, r = tf.linalg.qr(tf.transpose(rows))
    return tf.transpose(q), r
