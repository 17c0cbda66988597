"""Conjugate gradients for many right-hand sides at once.

Synopsis:

    solution = solve(Damped(hessian, 0.01), gradients, CG(tol=1e-6))
    solution = solve(damped, gradients, CG(preconditioner=EKFAC()))
"""

from __future__ import annotations

import dataclasses
import functools
import numbers

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.ekfac import EKFAC, EKFACInverse
from keras_tracin.curvature.solvers.solution import Solution, relative

# Of the largest eigenvalue: the least that a preconditioner divides by. Any
# positive one is right, and too small a one would magnify rounding errors.
_FLOOR = 1e-7


@dataclasses.dataclass(frozen=True)
class CG:
    """Block conjugate gradients (O'Leary 1980; Dubrulle 2001, BCGrQ).

    All right-hand sides search one common space, to which each step adds a
    vector for each of them. This takes far fewer steps than solving them one
    by one, and each step multiplies all vectors at once. Where a direction of
    negative curvature turns up, there is no minimum to go to: the solver stops
    with what it has, as in truncated Newton methods (Steihaug 1983).

    With a preconditioner, the first step goes along its own solutions, and the
    following ones correct them.

    Attributes:
        tol: residual to stop at, relative to the right-hand side. None takes
            `max_steps` steps and does not call what is left a failure: to stop
            early is a choice, since directions of little curvature, which come
            last, are the least certain ones.
        max_steps: largest number of products with the operator.
        preconditioner: `EKFAC()`, for a network's curvature. Of a Hessian it
            takes the Gauss-Newton matrix. None for none.
        examples: number of training examples, drawn at random once, that
            products with the curvature are taken over. A step then takes as
            much less time, and the solution is that of their curvature. None
            for all.
        seed: seed of the draw.
    """

    tol: float | None = 1e-4
    max_steps: int = 500
    preconditioner: EKFAC | None = None
    examples: int | None = None
    seed: int = 0

    def __post_init__(self):
        whole = isinstance(self.examples, numbers.Integral)
        whole = whole and not isinstance(self.examples, bool)
        if self.examples is not None and not (whole and self.examples > 0):
            raise ValueError(
                "`examples` should be 1 or more, or None for all. Received: "
                f"{self.examples!r}."
            )
        if (self.tol is not None and not self.tol > 0) or self.max_steps < 1:
            raise ValueError(
                "`tol` should be above 0 or None, and `max_steps` 1 or more. "
                f"Received: tol={self.tol!r}, max_steps={self.max_steps!r}."
            )
        if not isinstance(self.preconditioner, EKFAC | None):
            raise ValueError(
                "`preconditioner` should be `EKFAC()` or None. Received: "
                f"{self.preconditioner!r}."
            )
        if self.preconditioner and self.preconditioner.damping is not None:
            raise ValueError(
                "A preconditioner has the damping λ of the equations it helps "
                f"to solve. Received: {self.preconditioner!r}. Leave its "
                "`damping=` out."
            )

    def prepare(self, operator: Operator) -> CGInverse:
        """Keeps the operator, and fits the preconditioner if there is one.

        Args:
            operator: the matrix to invert, damping included.

        Raises:
            ValueError: if there is a preconditioner, and the operator is not
                a network's, or `EKFAC` cannot be fitted to it.
        """
        whole = operator
        if self.examples is not None:
            rng = np.random.default_rng(self.seed)
            operator = whole.sample(rng, self.examples)
        if self.preconditioner is None:
            return CGInverse(operator, self)
        layers = whole.undamped.nearby
        if layers is None:
            raise ValueError(
                "The preconditioner `EKFAC()` needs the curvature of a "
                f"network. Received: {type(whole.undamped).__name__}. "
                "Leave out `preconditioner=`."
            )
        fitted = self.preconditioner.fit(layers, operator.damping)
        return CGInverse(operator, self, fitted)


@dataclasses.dataclass(frozen=True, eq=False)
class CGInverse:
    """Conjugate gradients on one operator."""

    operator: Operator
    solver: CG
    preconditioner: EKFACInverse | None = None

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        value, left = tf.zeros_like(rhs), rhs
        scale = tf.norm(rhs, axis=1)
        residual = np.asarray(scale > 0, np.float64)
        solved = residual == 0
        steps, negative, tol = 0, False, self.solver.tol or 0.0
        while steps < self.solver.max_steps:
            before = residual.max(initial=0)
            if before <= tol:
                break
            # Starting again from the true residual leaves behind the rounding
            # errors that have added up.
            added, taken, negative = self._run(left, scale, steps)
            trial = value + added
            trial_left = rhs - self.operator.matmat(trial)
            after = relative(trial_left, scale)
            better = after < residual
            if not steps:
                # Each step is nearer to the solution in the norm of A, though
                # its residual may be larger than at zero.
                objective = tf.reduce_sum(trial * (rhs + trial_left), axis=1)
                better |= objective.numpy() > 0
            # Steps along positive curvature count, whatever is left of them.
            better |= negative
            value = tf.where(better[:, None], trial, value)
            left = tf.where(better[:, None], trial_left, left)
            residual = np.where(better, after, residual)
            solved |= better & np.isfinite(residual)
            steps += taken
            if negative or residual.max(initial=0) > before / 2:
                break
        if self.solver.tol is not None:
            solved = residual <= tol
        return Solution(
            value=value,
            converged=solved,
            steps=steps,
            residual=residual,
            negative_curvature=negative,
        )

    def _run(self, rhs, scale, used: int) -> tuple[tf.Tensor, int, bool]:
        """Runs from zero, until it converges or a curvature is negative.

        In Dubrulle's notation, transposed: `q` is an orthonormal basis of the
        residuals, `share` their coordinates in it, `search` the directions.
        With a preconditioner P, all of them are those of P^-½ A P^-½.

        Args:
            rhs: right-hand sides, `[m, p]`.
            scale: lengths that residuals are relative to, `[m]`.
            used: number of steps taken before.

        Returns:
            The solutions, the number of steps, and whether a curvature was
            negative.
        """
        q, share = _orthonormalize(self._scaled(rhs, -0.5))
        search, value = q, tf.zeros_like(rhs)
        steps = 0
        while steps < self.solver.max_steps - used:
            steps += 1
            image = self.operator.matmat(self._scaled(search, -0.5))
            image = self._scaled(image, -0.5)
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
                return self._scaled(value, -0.5), steps, True
            q, change = _orthonormalize(q - tf.matmul(step, image))
            share = tf.matmul(change, share)
            search = q + tf.matmul(change, search)
            lengths = self._lengths(q, share)
            left = tf.math.divide_no_nan(lengths, scale)
            if not np.isfinite(left).all() or (
                float(tf.reduce_max(left)) <= (self.solver.tol or 0.0) / 2
            ):
                break
        return self._scaled(value, -0.5), steps, False

    def _lengths(self, q: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
        """The lengths `[m]` of the residuals."""
        if self.preconditioner is None:
            return tf.norm(share, axis=0)
        rows = tf.matmul(share, q, transpose_a=True)
        return tf.norm(self._scaled(rows, 0.5), axis=1)

    def _scaled(self, rows: tf.Tensor, exponent: float) -> tf.Tensor:
        """A power of the preconditioner's matrix times each row `[m, p]`."""
        if self.preconditioner is None:
            return rows
        floor = self._floor

        def power(values):
            return tf.pow(tf.maximum(values, floor), exponent)

        (product,) = self.preconditioner.apply(rows, power)
        return product

    @functools.cached_property
    def _floor(self) -> tf.Tensor:
        assert self.preconditioner is not None
        largest = [
            tf.reduce_max(values) for values in self.preconditioner.eigenvalues
        ]
        least = np.finfo(self.operator.dtype.as_numpy_dtype).tiny
        return tf.maximum(_FLOOR * tf.reduce_max(largest), least)


def _orthonormalize(rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns orthonormal `q [k, p]` and `share [k, m]`: `rows = shareᵀ q`."""
    q, r = tf.linalg.qr(tf.transpose(rows))
    return tf.transpose(q), r
