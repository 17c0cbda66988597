"""The inverse of a damped curvature at each checkpoint, prepared once.

Operators read the weights that the model has, so one operator, compiled once,
is the curvature at every checkpoint in turn. What a solver prepares is right
at one set of weights and is kept for each.

Synopsis:

    inverses = Inverses(engine, CG(), damping=lambda: 0.01, title="Influence")
    inverses.fit(checkpoints)
    load(checkpoint)
    solved = inverses.solve(checkpoint, rows)   # [m, p], at these weights
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.kronecker import LayerCurvature
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.of_engine import (
    announced,
    check_gradients,
    curvature_of,
)
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.penalty import penalties_of
from keras_tracin.curvature.solvers import (
    CG,
    EKFAC,
    Arnoldi,
    Exact,
    Inverse,
    InverseSketch,
    LiSSA,
    RandomizedSketch,
    Solver,
    report,
)
from keras_tracin.data.batches import Batch
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.visits import PRESENT_WEIGHTS
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import flat
from keras_tracin.runs import Checkpoint, run_weights

# Fields describe these completely, unlike a solver of the user's own.
_SOLVERS = (CG, EKFAC, Arnoldi, Exact, InverseSketch, LiSSA, RandomizedSketch)

# Relative to the typical length of one example's gradient: above this, the
# gradient of the objective is more than the noise of the last steps.
_AT_REST = 0.1
_EXAMPLES, _BATCH = 1_024, 32  # that this is seen from


def choose_solver(
    curvature: str | None, solver: Solver | None
) -> tuple[str, Solver]:
    """The curvature and the solver that two options stand for.

    Args:
        curvature: "hessian", "gauss_newton", "ekfac" or None.
        solver: how it is inverted, or None.

    Returns:
        Both; the curvature is "ekfac" with `EKFAC`, as in the jobs and indexes
        of earlier versions.

    Raises:
        ValueError: if they do not go together.
    """
    layered = isinstance(solver, EKFAC)
    if curvature == "ekfac" and solver is not None and not layered:
        raise ValueError(
            "curvature='ekfac' has an inverse of its own, `EKFAC()`, and takes "
            f"no other solver. Received: solver={solver!r}. Leave it out, or "
            "choose curvature='gauss_newton'."
        )
    if layered and curvature == "hessian":
        raise ValueError(
            "`EKFAC` approximates the Gauss-Newton matrix. Received: "
            f"solver={solver!r} with curvature='hessian'; expected "
            "curvature='gauss_newton', the default with `EKFAC`."
        )
    if layered or curvature == "ekfac" or solver is curvature is None:
        return "ekfac", solver or EKFAC()
    return curvature or "hessian", CG() if solver is None else solver


class Inverses:
    """Prepared solvers, one for each checkpoint.

    Args:
        engine: the model, and the training examples of the objective.
        solver: how the curvature is inverted.
        curvature: "hessian"; anything else is the Gauss-Newton matrix.
        loss: used in place of the compiled loss, as the engine was given it.
        damping: gives λ, asked for once it is needed.
        penalty: factor of the weight regularisers beside the mean loss.
        title: name of the method, for the line that announces long work.

    Attributes:
        title: name of the method.
    """

    def __init__(
        self,
        engine: Engine,
        solver: Solver,
        *,
        curvature: str = "hessian",
        loss: Any = None,
        damping: Callable[[], float],
        penalty: float = 1.0,
        title: str,
    ):
        self._engine, self._solver = engine, solver
        self._curvature, self._loss = curvature, loss
        self._damping, self._penalty = damping, penalty
        self.title = title
        self._prepared: dict[Checkpoint | None, Inverse] = {}
        self._checked = False  # whether the last checkpoint is at rest

    def with_prepared(
        self, prepared: Mapping[Checkpoint | None, Inverse]
    ) -> Inverses:
        """The same, with inverses that have been prepared before.

        Args:
            prepared: inverses by checkpoint.
        """
        inverses = copy.copy(self)
        inverses._prepared, inverses._checked = dict(prepared), True
        return inverses

    @property
    def by_layer(self) -> LayerCurvature | None:
        """The curvature block by block, if EK-FAC inverts it."""
        if not isinstance(self._solver, EKFAC):
            return None
        return self.operator.by_layer

    @functools.cached_property
    def operator(self) -> Hessian | GaussNewton:
        """The curvature at the weights that the model has, undamped."""
        return curvature_of(
            self._engine, self._curvature, self._loss, self._penalty
        )

    def fit(
        self, checkpoints: Iterable[Checkpoint | None], verbose: int = 0
    ) -> None:
        """Prepares the solver at all checkpoints, unless that is done.

        It warns if the last of them is not at a minimum of the objective.

        Args:
            checkpoints: the checkpoints; None for the weights the model has.
            verbose: 0 for silence; else long work is announced.
        """
        *earlier, last = checkpoints
        missing = [c for c in earlier if c not in self._prepared]
        if last not in self._prepared or not self._checked:
            missing.append(last)
        if not missing:
            return
        with run_weights(self._engine.model) as load:
            for checkpoint in missing:
                if checkpoint is not None:
                    load(checkpoint)
                if checkpoint == last and not self._checked:
                    self._warn_unless_at_rest()
                    self._checked = True
                self.at(checkpoint, verbose)

    def at(self, checkpoint: Checkpoint | None, verbose: int = 0) -> Inverse:
        """The inverse at a checkpoint, whose weights the model has.

        Args:
            checkpoint: the checkpoint; None for the model's own weights.
            verbose: 0 for silence; else long work is announced.
        """
        if checkpoint not in self._prepared:
            damped = Damped(self.operator, self._damping())
            with (
                self._explaining(),
                self._announced("inverse of the curvature", verbose),
            ):
                self._prepared[checkpoint] = self._solver.prepare(damped)
        return self._prepared[checkpoint]

    def solve(
        self, checkpoint: Checkpoint | None, rows: tf.Tensor, verbose: int = 0
    ) -> tf.Tensor:
        """`(A + λI)⁻¹` times each row of `[m, p]`, A the curvature.

        It warns of solutions that did not converge.

        Args:
            checkpoint: the checkpoint whose weights the model has.
            rows: right-hand sides.
            verbose: 0 for silence; else long work is announced.
        """
        inverse = self.at(checkpoint, verbose)
        with (
            self._explaining(),
            self._announced(f"{len(rows):,} systems of equations", verbose),
        ):
            solution = inverse(tf.cast(rows, self.operator.dtype))
        if not np.isfinite(solution.value).all():
            self._check_gradients()
        report(solution, type(self._solver).__name__)
        return tf.cast(solution.value, rows.dtype)

    def directions(
        self,
        checkpoint: Checkpoint | None,
        queries: Queries,
        verbose: int = 0,
    ) -> tuple:
        """`(A + λI)⁻¹` times the queries' gradients, as dense gradients.

        Args:
            checkpoint: the checkpoint whose weights the model has.
            queries: the queries.
            verbose: 0 for silence; else long work is announced.

        Raises:
            ValueError: if a gradient is NaN or infinite.
        """
        rows = self._engine.rows_of(queries, checkpoint)
        solved = self.solve(checkpoint, rows, verbose)
        return flat.directions(solved, queries.steps.query.variables)

    def numbers(self, checkpoint: Checkpoint | None, batch: Batch) -> Numbers:
        """The results of regularisers and of a solver of the user's own.

        They tell apart what no description does.

        Args:
            checkpoint: the checkpoint whose weights the model has.
            batch: a few training examples.
        """
        numbers = {"penalties": penalties_of(self._engine.model)}
        if type(self._solver) not in _SOLVERS:
            rows = self._engine.train_steps.rows(batch.data, np.float32(1))
            mean = tf.reduce_mean(rows, axis=0, keepdims=True)
            solved = self.solve(checkpoint, mean)
            numbers["solution"] = tf.norm(solved, axis=1).numpy()
        return numbers

    @contextlib.contextmanager
    def _announced(self, what: str, verbose: int):
        """Shows a progress bar of the batches that a solver uses in a block."""
        work = f"{what}, by {type(self._solver).__name__}"
        given = self.title, self._engine, self.operator, verbose
        with announced(work, *given):
            yield

    @contextlib.contextmanager
    def _explaining(self):
        """For a `with` block, names examples that break linear algebra."""
        try:
            yield
        except np.linalg.LinAlgError:
            self._check_gradients()
            raise

    def _check_gradients(self) -> None:
        """Raises ValueError if an example's gradient is NaN or infinite."""
        check_gradients(self.title, self._engine, PRESENT_WEIGHTS)

    def _warn_unless_at_rest(self) -> None:
        """Compares the mean gradient of some examples with their own."""
        operator, steps = self.operator, self._engine.train_steps
        total = tf.zeros([operator.size], operator.dtype)
        squares, count = 0.0, 0
        size = self._engine.train.expected_size
        every = max(1, (size or 0) // _EXAMPLES)
        for data in operator.held.spread(every, _BATCH):
            factors = steps.captured(data).factors
            squares += sum(
                float(tf.reduce_sum(algebra.squared_norm(f))) for f in factors
            )
            parts = [part for f in factors for part in algebra.total(f)]
            total += tf.concat([tf.cast(p, total.dtype) for p in parts], 0)
            count += len(tf.nest.flatten(data)[0])
            if count >= _EXAMPLES:
                break
        if not np.isfinite(squares):
            self._check_gradients()
        if not all(tf.reduce_any(v != 0) for v in operator.layout.split(total)):
            # Its trace names variables that the loss has no gradient for.
            operator.batch_gradient.get_concrete_function()
        typical = np.sqrt(squares / count)
        gradient = total / count + operator.regularizers.gradient()
        squared = float(tf.reduce_sum(tf.square(gradient)))
        # Without the part that the mean of a sample has by chance.
        by_chance = typical**2 / count * max(0.0, 1 - count / (size or count))
        length = np.sqrt(max(0.0, squared - by_chance))
        if length > _AT_REST * typical:
            warnings.warn(
                "The model has not converged: the gradient of its objective "
                f"has length {length:.2g}, {length / typical:.0%} of that of "
                "one example's loss. Influence functions describe a minimum; "
                "train on, or use `TracIn`, which does not need one.",
                stacklevel=2,
            )
