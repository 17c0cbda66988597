"""The result of a solver, and the warnings when it did not converge.

Synopsis:

    solution = solve(Damped(hessian, 0.01), gradients, CG())
    solution.value          # [m, p], (H + λI)⁻¹ gradients
    solution.converged      # [m]
"""

from __future__ import annotations

import dataclasses
import warnings
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator


@dataclasses.dataclass(frozen=True, eq=False)
class Solution:
    """Approximate solutions `x` of `A x = b`, one for each row of `b`.

    Attributes:
        value: `[m, p]`.
        converged: `[m]`, whether the residual is within the tolerance.
        steps: number of products with the operator, or with samples of it.
        residual: `[m]`, `‖b − A x‖ / ‖b‖`; NaN where it was not measured.
        negative_curvature: whether the operator turned out not to be positive
            definite. The value may solve the equation all the same, but no
            longer tells how the minimum moves.
    """

    value: tf.Tensor
    converged: np.ndarray
    steps: int
    residual: np.ndarray
    negative_curvature: bool = False


class Inverse(Protocol):
    """A solver prepared for one operator, to be used many times."""

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""


class Solver(Protocol):
    """A way to solve, as a small frozen value."""

    def prepare(self, operator: Operator) -> Inverse:
        """Does the work that all right-hand sides share."""


def solve(operator: Operator, rhs: tf.Tensor, solver: Solver) -> Solution:
    """Solves `A x = b` for each row of `rhs [m, p]`.

    Args:
        operator: symmetric and, for a meaningful answer, positive definite.
        rhs: `[m, p]`.
        solver: `Exact()`, `CG()`, `LiSSA()`, `Arnoldi()`, `EKFAC()` or
            `RandomizedSketch(dim)`.

    Returns:
        A `Solution`. One that did not converge says so, and a warning names
        the remedy.

    Raises:
        ValueError: if `rhs` does not have the operator's width, or the solver
            does not take the operator.
    """
    rhs = tf.convert_to_tensor(rhs, operator.dtype)
    if rhs.shape.rank != 2 or rhs.shape[1] != operator.size:
        raise ValueError(
            f"`rhs` should be of shape [m, {operator.size}], a row for each "
            f"right-hand side. Received: shape {rhs.shape}."
        )
    solution = solver.prepare(operator)(rhs)
    if np.isnan(solution.residual).any():
        residual = residuals(operator, solution.value, rhs)
        solution = dataclasses.replace(solution, residual=residual)
    report(solution, type(solver).__name__)
    return solution


def residuals(
    operator: Operator, value: tf.Tensor, rhs: tf.Tensor
) -> np.ndarray:
    """`‖b − A x‖ / ‖b‖` of each row, zero where both are zero."""
    left = rhs - operator.matmat(value)
    return relative(left, tf.norm(rhs, axis=1))


def relative(left: tf.Tensor, scale: tf.Tensor) -> np.ndarray:
    """The lengths of what is left `[m, p]` of right-hand sides.

    Args:
        left: `b − A x`.
        scale: `‖b‖`, that they are divided by; zero where it is zero.
    """
    return tf.math.divide_no_nan(tf.norm(left, axis=1), scale).numpy()


def report(solution: Solution, name: str) -> None:
    """Warns of solutions that are not to be trusted, and names the remedy.

    Args:
        solution: the solutions, warned of once for all rows.
        name: the solver's.
    """
    if solution.negative_curvature:
        worst = np.nanmax(solution.residual, initial=0)
        stopped = (
            ""
            if solution.converged.all()
            else f"; it stopped at step {solution.steps}, with a residual of "
            f"{worst:.1e} of its right-hand side"
        )
        warnings.warn(
            f"{name}: the damped curvature is not positive definite, so the "
            "weights are not at a minimum of the damped objective and scores "
            f"may have the wrong sign{stopped}. Raise `damping` above minus "
            "the smallest eigenvalue, or use `curvature='gauss_newton'`, which "
            "has no negative eigenvalues.",
            stacklevel=3,
        )
    missed = np.count_nonzero(~solution.converged)
    if missed and not solution.negative_curvature:
        worst = np.nanmax(solution.residual)
        warnings.warn(
            f"{name}: {missed} of {len(solution.converged)} right-hand sides "
            f"did not converge in {solution.steps} steps; the largest "
            f"residual is {worst:.1e} of its right-hand side. Raise "
            "`damping`, which makes the problem easier, or allow more steps.",
            stacklevel=3,
        )
