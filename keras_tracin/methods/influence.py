"""Influence functions: what the minimum does when an example counts less.

    score(z, z') = ∇ℓ(ŵ, z')ᵀ (H + λI)⁻¹ ∇ℓ(ŵ, z)

H is the curvature of the training objective at the trained weights ŵ (section
A.1; Koh & Liang 2017). Positive scores are proponents: this is the *negative*
of eq. 2. Divided by the number of training examples, it is to first order by
how much the query's loss rises when z is left out and training starts again.

Synopsis:

    method = kt.InfluenceFunctions(model, train, damping=0.01)
    method.influence(test)       # Attribution [num_test, num_train]
    method.top_k(test, k=10)     # TopK
    method.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.curvature.ekfac import fit_ekfac
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.operators import Damped, check_damping
from keras_tracin.curvature.solvers import (
    CG,
    Arnoldi,
    Exact,
    Inverse,
    LiSSA,
    Solver,
    report,
)
from keras_tracin.curvature.solvers.randomized_sketch import (
    InverseSketch,
    RandomizedSketch,
)
from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.passes import Pass, norms_pass
from keras_tracin.engine.per_example import PerExample
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.sweep import sweep
from keras_tracin.gradients import flat
from keras_tracin.losses.output_kinds import SAMPLE, outputs_of
from keras_tracin.losses.outputs import check_consistent
from keras_tracin.losses.per_example import penalty_weight
from keras_tracin.methods.base import Method
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusively
from keras_tracin.models.state import preserved
from keras_tracin.results.streaming import ScoreColumns

_CURVATURES: dict[str, type[Hessian] | type[GaussNewton]] = {
    "hessian": Hessian,
    "gauss_newton": GaussNewton,
    "ekfac": GaussNewton,
}
_RELATIVE = (None, "loss", "parameters")
# Their fields say all of them.
_SOLVERS = (Arnoldi, CG, Exact, InverseSketch, LiSSA, RandomizedSketch)
_DIGESTED = 256  # examples at a time

# Of the typical length of one example's gradient: above this the objective's
# own gradient is no noise of the last steps.
_AT_REST = 0.1


class InfluenceFunctions(Method):
    """Influence of training examples at the minimum of the objective.

    Example:
    ```python
    method = kt.InfluenceFunctions(model, train, damping=0.01)
    scores = method.influence(test).scores / num_train
    # about: loss of each query without the example - loss with it
    ```

    The weights are taken to minimise the objective; a warning gives the length
    of its gradient where they do not. What the solver prepares is kept from
    the first call on: after training further, make another object.

    The objective is the mean loss plus weight regularisers as Keras adds them:
    with their full weight beside a mean over the batch, with `1 / batch_size`
    of it beside a sum. The model runs in inference mode and is not changed.

    `self_influence` and `relative` solve once for *each training example*:
    with `CG` or `LiSSA` this takes about as many passes over the data as
    there are batches, times their steps. `Arnoldi`, `RandomizedSketch` and
    `curvature="ekfac"` (and `Exact`, for small networks) do all but a few
    products beforehand.

    Args:
        model: the trained model, compiled with its loss.
        train: what `model.fit` took, as in `TracIn`.
        solver: `CG()` (the default), `Exact()`, `LiSSA()`, `Arnoldi()` or
            `RandomizedSketch(dim)`; none for `"ekfac"`.
        damping: λ, added to every eigenvalue of the curvature. A larger one
            makes solving easier, and is needed where the Hessian has negative
            eigenvalues; then let it exceed the smallest one's size.
        curvature: `"hessian"`; `"gauss_newton"`, which has no negative
            eigenvalues (Martens 2020); or `"ekfac"`, which approximates it
            layer by layer and is solved at once (Grosse et al. 2023).
        relative: `"loss"` divides each score by the square root of the
            example's self-influence, `"parameters"` by the length of
            `(H + λI)⁻¹ ∇ℓ(z)` (RelatIF; Barshan et al. 2020, sec. 3): what
            is rare everywhere then no longer leads every ranking.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: what a query's influence is measured on, as in `TracIn`.
        layers: names or layers to restrict gradients and curvature to.
        batch_size: that of training; only needed for a loss that is summed
            over the batch in a model with regularisers.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        jit_compile: whether XLA compiles the steps; "auto" does where there is
            a device other than a CPU, as Keras does in `fit`.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.

    Raises:
        ValueError: if `damping` is negative, an option is unknown, the model
            is not compiled and no `loss` is given, or it computes in half
            precision.
    """

    title = "Influence functions"

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        damping: float,
        solver: Solver | None = None,
        curvature: str = "hessian",
        relative: str | None = None,
        loss: Any = None,
        query_loss: Any = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        batch_size: int | None = None,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ):
        check_damping(damping)
        _check_one_of("curvature", curvature, tuple(_CURVATURES))
        _check_one_of("relative", relative, _RELATIVE)
        if curvature == "ekfac" and solver is not None:
            raise ValueError(
                "curvature='ekfac' has an inverse of its own and takes no "
                f"solver. Received: solver={solver!r}. Leave it out, or choose "
                "curvature='gauss_newton'."
            )
        self._damping = damping
        self._layers = layers
        self._loss = loss
        self._solver = CG() if solver is None else solver
        self._curvature = curvature
        self._relative = relative
        self._penalty = penalty_weight(model, loss, batch_size)
        self.engine = Engine(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            layers=layers,
            execution=Execution.of(strategy, jit_compile, memory_limit),
        )
        self._whole = self.engine  # also where `among` scores some examples
        self.remember_weights()

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {
            "solver": describe(self.solver),
            "damping": self._damping,
            "curvature": self._curvature,
            "relative": self._relative,
            "penalty": self._penalty,
            "regularizers": [
                describe(getattr(weight, "regularizer", None))
                for weight in self.model.weights
            ],
        }

    @property
    def solver(self) -> Solver | None:
        """What inverts the curvature; none for `"ekfac"`, which does so."""
        return None if self._curvature == "ekfac" else self._solver

    @property
    @exclusively
    def inverse(self) -> Inverse:
        """The solver, made ready for this curvature; for a sketch, the sketch.

        Called with rows `[m, p]` it returns a `Solution`.
        """
        return self._inverse

    @functools.cached_property
    def _inverse(self) -> Inverse:
        with preserved(self.model):
            return self._prepare_inverse()

    def _prepare_inverse(self) -> Inverse:
        self._warn_unless_at_rest()
        if self._curvature == "ekfac":
            groups = self._whole.train_steps.variables
            operator = self._operator
            return fit_ekfac(operator, groups, self._layers, self._damping)
        return self._solver.prepare(Damped(self._operator, self._damping))

    @functools.cached_property
    def _operator(self) -> Hessian | GaussNewton:
        engine = self._whole
        execution = engine.execution
        groups = engine.train_steps.variables
        options: dict[str, Any] = {}
        if self._curvature != "hessian":
            x = engine.train.first(SAMPLE).x
            seen = outputs_of(engine.model, self._loss, x)
            check_consistent(seen)
            options["see_outputs"] = seen.with_logits
        return _CURVATURES[self._curvature](
            engine.model,
            engine.loss,
            engine.train,
            tuple(variable for group in groups for variable in group),
            self._penalty,
            execution.memory,
            execution.strategy,
            execution.jit_compile,
            **options,
        )

    def _warn_unless_at_rest(self) -> None:
        squares: list[np.ndarray] = []
        engine = self._whole
        norms = norms_pass(self.title, engine.train_steps, self.checkpoints)
        sink = Sink(lambda ids, scores: squares.append(scores))
        sweep(engine, norms, sink, Call(verbose=0))
        typical = float(np.sqrt(np.concatenate(squares).mean()))
        length = float(tf.norm(self._operator.gradient()))
        if length > _AT_REST * typical:
            warnings.warn(
                "The model has not converged: the gradient of its objective "
                f"has length {length:.2g}, {length / typical:.0%} of that of "
                "one example's loss. Influence functions describe a minimum; "
                "train on, or use `TracIn`, which does not need one.",
                stacklevel=2,
            )

    def job(self, test: Any) -> dict[str, Any]:
        """What scores depend on, as JSON, for the parts on disk."""
        # All training examples have a part in the curvature.
        train = self._whole.train.batches(_DIGESTED)
        return {**super().job(test), "train": content_digest(train)}

    def more_numbers(self, batch: Batch, known: Numbers) -> Numbers:
        """What regularisers and a solver of the user's own compute."""
        weights = self.model.weights
        found = {
            "penalties": np.array(
                [
                    float(weight.regularizer(weight.value))
                    for weight in weights
                    if getattr(weight, "regularizer", None) is not None
                ]
            )
        }
        if self.solver is not None and type(self.solver) not in _SOLVERS:
            rows = self.engine.train_steps.rows(batch.data, np.float32(1))
            solved = self._solved(tf.reduce_mean(rows, axis=0, keepdims=True))
            found["solution"] = tf.norm(solved, axis=1).numpy()
        return found

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query."""
        operator = self._operator
        # The solvers hold a few vectors for each query.
        return 2 * operator.size * operator.dtype.size

    def _solved(self, rows: tf.Tensor) -> tf.Tensor:
        solution = self._inverse(tf.cast(rows, self._operator.dtype))
        report(solution, type(self._solver).__name__)
        return tf.cast(solution.value, rows.dtype)

    def query_pass(self, queries: Queries) -> Pass:
        """The pass that scores a block of queries."""
        if self._relative is not None:
            _ = self._lengths  # now, when no scores are held
        query, one = queries.steps.query, np.float32(1)
        with preserved(self.model):
            rows = [query.rows(batch.data, one) for batch in queries.batches]
            rows = tf.concat(rows, axis=0)
            if not np.isfinite(rows).all():
                raise self.engine.not_finite(None, queries)
            solved = self._solved(rows)
        directions = flat.directions(solved, query.variables)
        return Pass(
            self.title,
            queries.steps.train.along,
            self.checkpoints,
            queries,
            prepare=lambda visit: directions,
            rescale=self._divide,
        )

    def self_pass(self) -> Pass:
        """The pass that scores `gᵀ(H + λI)⁻¹g`."""
        return self._pass_of_each(self.engine, "loss")

    def _divide(self, scores: np.ndarray, chunk: Chunk) -> np.ndarray:
        """Divides the columns by what `relative` asks for."""
        if self._relative is None:
            return scores
        lengths = self._lengths.of(chunk, self.engine.train)
        return np.divide(
            scores, lengths, out=np.zeros_like(scores), where=lengths > 0
        )

    @functools.cached_property
    def _lengths(self) -> PerExample:
        """The numbers that `relative` divides by."""
        assert self._relative is not None
        columns, whole = ScoreColumns(), self._whole
        work = self._pass_of_each(whole, self._relative)
        sweep(whole, work, Sink(columns.add), Call(verbose=0))
        lengths = columns.scores
        if self._relative == "loss":
            lengths = np.sqrt(np.maximum(lengths, 0))
        return PerExample(whole.train, columns.ids, lengths)

    def _pass_of_each(self, engine: Engine, kind: str) -> Pass:
        """`gᵀ(H + λI)⁻¹g` ("loss") or `‖(H + λI)⁻¹g‖` of each example."""

        def measure(rows):
            solved = self._solved(rows)
            if kind == "loss":
                return tf.reduce_sum(rows * solved, axis=1).numpy()
            return tf.norm(solved, axis=1).numpy()

        return Pass(
            self.title,
            engine.train_steps.rows,
            self.checkpoints,
            finish=measure,
            compared=lambda rows: np.linalg.norm(rows.numpy(), axis=-1),
        )


def _check_one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(
            f"`{name}` should be one of {list(allowed)}. Received: {value!r}."
        )
