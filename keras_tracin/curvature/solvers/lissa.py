"""LiSSA: the inverse as a series, with a random minibatch for each term.

Synopsis:

    solution = solve(Damped(hessian, 0.01), gradients, LiSSA(batch_size=64))
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.solution import Solution, residuals
from keras_tracin.curvature.spectrum import extreme_eigenvalues

_PROBES = 3  # minibatches whose largest eigenvalue is estimated
_MOST_STEPS = 5000


@dataclasses.dataclass(frozen=True)
class LiSSA:
    """`x ← x + (b − A_t x) / σ`, `A_t` from minibatch t (Agarwal et al. 2017).

    The scale σ must exceed the largest eigenvalue of every minibatch's
    curvature, or the series diverges: it is estimated. The mean over the last
    half of the steps is returned, which takes out most of the minibatches'
    noise.

    Attributes:
        batch_size: examples in a minibatch.
        steps: terms of the series; by default `4 σ / λ` with λ the smallest
            eigenvalue seen, which its direction needs, and at most 5,000.
        tol: residual up to which a solution counts as converged. The noise of
            the minibatches keeps it well above that of `CG`.
        seed: seed of the minibatches.
    """

    batch_size: int = 64
    steps: int | None = None
    tol: float = 0.1
    seed: int = 0

    def __post_init__(self):
        if self.batch_size < 1 or (self.steps is not None and self.steps < 2):
            raise ValueError(
                "`batch_size` should be 1 or more and `steps` 2 or more. "
                f"Received: batch_size={self.batch_size!r}, "
                f"steps={self.steps!r}."
            )

    def prepare(self, operator: Operator) -> LiSSAInverse:
        """Estimates the scale and the number of steps.

        Args:
            operator: the matrix to invert, damping included.
        """
        smallest, scale = extreme_eigenvalues(operator)
        rng = np.random.default_rng([self.seed, 1])
        for _ in range(_PROBES):
            sample = operator.sample(rng, self.batch_size)
            scale = max(scale, extreme_eigenvalues(sample, 10)[1])
        scale *= 1.2
        steps = self.steps
        if steps is None:
            floor = scale / _MOST_STEPS
            steps = math.ceil(4 * scale / max(smallest, floor))
            steps = min(max(steps, 100), _MOST_STEPS)
        return LiSSAInverse(operator, self, scale, steps, smallest)


@dataclasses.dataclass(frozen=True, eq=False)
class LiSSAInverse:
    """The series on one operator.

    Attributes:
        operator: the matrix to invert.
        solver: the settings.
        scale: σ.
        steps: terms of the series.
        smallest: the smallest eigenvalue that was seen, damping included.
    """

    operator: Operator
    solver: LiSSA
    scale: float
    steps: int
    smallest: float

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`.

        Raises:
            ValueError: if the series diverges.
        """
        scale, taken = self.scale, 0
        for _ in range(4):
            value = self._series(rhs, scale)
            taken += self.steps
            residual = residuals(self.operator, value, rhs)
            if np.isfinite(residual).all() and residual.max(initial=0) < 1.5:
                break
            scale *= 2  # it diverged: a minibatch had curvature above σ
        else:
            raise ValueError(self._explain_divergence(residual, taken))
        return Solution(
            value=value,
            converged=residual <= self.solver.tol,
            steps=taken,
            residual=residual,
            negative_curvature=self.smallest <= 0,
        )

    def _explain_divergence(self, residual: np.ndarray, taken: int) -> str:
        """The error of a series that grows, with its remedy."""
        finite = residual[np.isfinite(residual)]
        worst = f"{finite.max():.1e}" if len(finite) == len(residual) else "inf"
        if self.smallest <= 0:
            reason = (
                "The damped curvature is not positive definite: it has an "
                f"eigenvalue of {self.smallest:.2g}, and along such directions "
                f"the series grows. Raise `damping` by {-self.smallest:.2g} or "
                "more, or use `curvature='gauss_newton'`, which has no "
                "negative eigenvalues"
            )
        else:
            reason = (
                "Some minibatches have negative or much larger curvature than "
                "the mean. Raise `damping` or LiSSA's `batch_size`, use "
                "`curvature='gauss_newton'`, which has no negative eigenvalues"
            )
        return (
            f"LiSSA diverged: after {taken} steps the residual is {worst} "
            f"times the right-hand side, expected at most {self.solver.tol}. "
            f"{reason}, or take another solver, `CG()` for example."
        )

    def _series(self, rhs: tf.Tensor, scale: float) -> tf.Tensor:
        rng = np.random.default_rng(self.solver.seed)
        value = rhs / scale
        total = tf.zeros_like(rhs)
        first = self.steps // 2
        for step in range(self.steps):
            sample = self.operator.sample(rng, self.solver.batch_size)
            value += (rhs - sample.matmat(value)) / scale
            if step >= first:
                total += value
        return total / (self.steps - first)
