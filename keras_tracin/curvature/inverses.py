"""The inverse of a damped curvature at each checkpoint, fitted once.

Operators read the weights that the model has, so one operator, compiled once,
is the curvature at every checkpoint in turn. What a solver prepares is of one
set of weights and is kept for each.

Synopsis:

    inverses = Inverses(lambda: Hessian(...), damping=0.01, solver=CG())
    load(checkpoint)
    solved = inverses.solve(checkpoint, rows)   # [m, p], at these weights
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable

import tensorflow as tf

from keras_tracin.curvature.mean_loss import MeanLossCurvature
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.solvers.solution import Inverse, Solver, report
from keras_tracin.engine.progress import Progress
from keras_tracin.models.state import preserved


class Inverses:
    """Prepared solvers, one for each checkpoint.

    Args:
        operator: makes the curvature, when it is first needed.
        damping: λ.
        solver: how it is inverted.
    """

    def __init__(
        self,
        operator: Callable[[], MeanLossCurvature],
        damping: float,
        solver: Solver,
    ):
        self._make_operator = operator
        self._damping = damping
        self._solver = solver
        self._prepared: dict[Hashable, Inverse] = {}

    @functools.cached_property
    def operator(self) -> MeanLossCurvature:
        """The curvature at the weights that the model has, undamped."""
        return self._make_operator()

    def has(self, checkpoint: Hashable) -> bool:
        """Whether the solver is prepared for a checkpoint."""
        return checkpoint in self._prepared

    def at(self, checkpoint: Hashable, verbose: int = 0) -> Inverse:
        """The inverse at a checkpoint, whose weights the model has.

        Args:
            checkpoint: the checkpoint; None for the model's own weights.
            verbose: 0 for silence; else long work is announced.
        """
        if checkpoint not in self._prepared:
            what = f"the inverse of the curvature, by {_name(self._solver)}"
            damped = Damped(self.operator, self._damping)
            with preserved(self.operator.model), self._announce(what, verbose):
                self._prepared[checkpoint] = self._solver.prepare(damped)
        return self._prepared[checkpoint]

    def solve(
        self, checkpoint: Hashable, rows: tf.Tensor, verbose: int = 0
    ) -> tf.Tensor:
        """`(A + λI)⁻¹` times each row of `[m, p]`.

        It warns of solutions that did not converge.

        Args:
            checkpoint: the checkpoint whose weights the model has.
            rows: right-hand sides.
            verbose: 0 for silence; else long work is announced.
        """
        inverse = self.at(checkpoint, verbose)
        what = f"{len(rows):,} systems of equations, by {_name(self._solver)}"
        with preserved(self.operator.model), self._announce(what, verbose):
            solution = inverse(tf.cast(rows, self.operator.dtype))
        report(solution, _name(self._solver))
        return tf.cast(solution.value, rows.dtype)

    def _announce(self, what: str, verbose: int):
        """Within it, batches of the data advance a progress bar."""
        progress = Progress(_Work(what), verbose, "Influence functions")
        return self.operator.held.watched(progress)


def _name(solver: Solver) -> str:
    return type(solver).__name__


class _Work:
    """Work of an unknown number of steps, as it is announced."""

    steps = None

    def __init__(self, what: str):
        self._what = what

    def __str__(self) -> str:
        return self._what
