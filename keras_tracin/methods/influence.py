"""Influence functions: how the minimum moves when an example weighs less.

    score(z, z') = ∇ℓ(ŵ, z')ᵀ (H + λI)⁻¹ ∇ℓ(ŵ, z)

H is the curvature of the training objective at the trained weights ŵ (Pruthi
et al. 2020, section A.1; Koh & Liang 2017). Positive scores are proponents:
this is the *negative* of eq. 2. Divided by the number of training examples, it
is, to first order, the rise of the query's loss when z is left out and
training starts again.

Synopsis:

    method = kt.InfluenceFunctions(model, train)
    method.influence(test)       # Attribution [num_test, num_train]
    method.top_k(test, k=10)     # TopK
    method.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.curvature.inverses import Inverses, choose_solver
from keras_tracin.curvature.mean_loss import check_precision
from keras_tracin.curvature.operators import check_damping
from keras_tracin.curvature.solved_lengths import SolvedLengths, solved_pass
from keras_tracin.curvature.solvers import (
    EKFAC,
    RELATIVE_DAMPING,
    Inverse,
    InverseSketch,
    Solver,
)
from keras_tracin.curvature.training_damping import TrainingTime
from keras_tracin.data.batches import Batch
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.passes import Pass, Sums
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Visit, Weights
from keras_tracin.losses.per_example import objective_scale, penalty_weight
from keras_tracin.methods.index_rows import inverse_rows
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.methods.of_objective import OfObjective
from keras_tracin.methods.training_notes import check_training
from keras_tracin.methods.whitened_rows import whitened_rows
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.projection import Projection
from keras_tracin.results import Attribution
from keras_tracin.runs import TrainingRun, check_checkpoint

_CURVATURES = (None, "hessian", "gauss_newton", "ekfac")
_RELATIVE = (None, "loss", "parameters")


class InfluenceFunctions(OfObjective):
    """Influence of training examples at the minimum of the objective.

    Example:
    ```python
    method = kt.InfluenceFunctions(model, train, run="runs/digits")
    scores = method.influence(test).scores / num_train
    # about: loss of each query without the example - loss with it
    ```

    The weights are taken to minimise the objective; a warning gives the length
    of its gradient where they do not. The inverse of the curvature is prepared
    by the first call and kept (`plan` prepares it as well): after training
    further, make another object.

    With `run=`, scores are the mean over the run's checkpoints, of equal
    weight, each with its own curvature; an inverse is kept for each. Before
    the end of training gradients have not vanished yet, and on networks such
    means predict better, with another damping than at the end. Only the last
    checkpoint is expected to be at a minimum.

    The objective is the mean loss plus weight regularisers as Keras adds them:
    with their full weight beside a mean over the batch, with `1 / batch_size`
    of it beside a sum. The model runs in inference mode and is not changed.

    The self-influence of an example is `∇ℓ(z)ᵀ(H + λI)⁻¹∇ℓ(z)`; `query_loss`
    and `relative` play no part in it. Both it and `relative` solve a system of
    equations for *each training example*: with `CG` or `LiSSA` this takes
    about as many passes over the data as there are batches, times their steps.
    `Arnoldi`, `EKFAC` and `RandomizedSketch` (and `Exact`, for small networks)
    do all but a few products beforehand.

    Args:
        model: the trained model, compiled with its loss.
        train: the data that `model.fit` took, as in `TracIn`.
        run: a `TrainingRun` or its directory; `run[3::4]` takes every fourth
            checkpoint. By default, scores are at the weights that the model
            has now.
        damping: λ, added to every eigenvalue of the curvature. `"auto"` is
            one over the sum of the learning rates of the training, times 1 - μ
            for a momentum μ, over the mean factor of gradients for Adam and
            others: what steps of gradient descent have not reached counts no
            more than it would have under such a penalty (Ali et al. 2019). It
            is read from `run`, else from the model's optimizer. A larger one
            makes solving easier, and is needed where the Hessian has negative
            eigenvalues; then let it exceed the smallest one's size. With
            `solver=EKFAC(damping="relative")` a number is the multiple of
            each block's mean eigenvalue, and "auto" stands for 0.1.
        curvature: `"hessian"`, the default with any solver but `EKFAC()`;
            `"gauss_newton"`, which has no negative eigenvalues (Martens 2020);
            or `"ekfac"`, short for `"gauss_newton"` with `solver=EKFAC()`, the
            default where no solver is given.
        solver: `EKFAC()` (the default), `CG()`, `Exact()`, `LiSSA()`,
            `Arnoldi()` or `RandomizedSketch(dim)`. `EKFAC()` approximates the
            Gauss-Newton matrix layer by layer and solves at once (Grosse et
            al. 2023).
        relative: `"loss"` divides each score by the square root of the
            example's self-influence, `"parameters"` by the length of
            `(H + λI)⁻¹ ∇ℓ(z)` (RelatIF; Barshan et al. 2020, sec. 3): what
            is rare everywhere then no longer leads every ranking.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: measure of a query's influence, as in `TracIn`.
        class_weight: the `class_weight` given to `fit`. It scales the losses
            of training examples, in their gradients and in the curvature.
        layers: names or layers to restrict gradients and curvature to.
        batch_size: that of training; only needed for a loss that is summed
            over the batch in a model with regularisers.
        strategy: a `tf.distribute.Strategy` under which the model was built.
        jit_compile: whether XLA compiles the steps; "auto" does where there is
            a device other than a CPU, as Keras does in `fit`.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.

    Attributes:
        solver: how the curvature is inverted.

    Raises:
        ValueError: if `damping` is negative or a word other than "auto", an
            option is unknown, curvature and solver do not go together, the run
            holds no checkpoint or does not fit, the model is not compiled and
            no `loss` is given, it computes in half precision, or `damping` is
            "auto" and how far training went is not known.
    """

    title = "Influence functions"

    @exclusive_access
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        run: TrainingRun | str | os.PathLike | None = None,
        damping: float | str = "auto",
        curvature: str | None = None,
        solver: Solver | None = None,
        relative: str | None = None,
        loss: Any = None,
        query_loss: Any = None,
        class_weight: Mapping[int, float] | None = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        batch_size: int | None = None,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ):
        check_is_model(model)
        check_damping(0.0 if damping == "auto" else damping)
        check_precision(model)
        _check_one_of("curvature", curvature, _CURVATURES)
        _check_one_of("relative", relative, _RELATIVE)
        self._curvature, self.solver = choose_solver(curvature, solver)
        self._given_damping = damping
        self._relative = relative
        self._penalty = penalty_weight(model, loss, batch_size)
        if run is not None:
            run = run if isinstance(run, TrainingRun) else TrainingRun(run)
            self.checkpoints = _equal_weights(run, self.solver)
        self.engine = Engine(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            class_weight=class_weight,
            layers=layers,
            execution=Execution.of(strategy, jit_compile, memory_limit),
        )
        self._training: TrainingTime | None = None
        if damping == "auto" and not _is_relative(self.solver):
            what = "how far a step goes, as damping='auto' needs to know,"
            scale = objective_scale(model, what, loss, batch_size)
            with self.engine.updated.trainable():
                self._training = TrainingTime(model, run, scale)
        self.remember_trainable()
        if run is None:
            self.remember_weights()
        else:
            check_training(run, self.engine)
            for checkpoint in run:
                check_checkpoint(model, checkpoint)
        self._whole = self.engine
        self._inverses = Inverses(
            self.engine,
            self.solver,
            curvature=self._curvature,
            loss=loss,
            damping=lambda: self.damping,
            penalty=self._penalty,
            title=self.title,
        )
        self._lengths: SolvedLengths | None = None
        if relative is not None:
            self._lengths = SolvedLengths(self.engine, self._inverses, relative)

    @functools.cached_property
    def damping(self) -> float:
        """λ, also where "auto" was given.

        With `EKFAC(damping="relative")`, the multiple of the mean eigenvalue.
        """
        if self._training is None:
            given = self._given_damping
            return RELATIVE_DAMPING if given == "auto" else float(given)
        with self.engine.updated.trainable():
            return self._training.damping(self._whole.variables)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        # "ekfac" implies it, and did so in earlier versions.
        is_default = self.solver == EKFAC()
        return {
            "solver": None if is_default else describe(self.solver),
            "damping": self.damping,
            "curvature": self._curvature,
            "relative": self._relative,
            **self.objective_settings,
        }

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {
            **self.engine.losses["objective"],
            "relative": self._relative,
        }

    @property
    def against_recurring(self) -> str:
        """What to do where all queries have the same strongest examples."""
        if self._relative:
            return "Look at them: their length is divided out already."
        return "Look at them, or pass `relative='loss'` to divide by length."

    @property
    @exclusive_access
    def inverse(self) -> Inverse:
        """The inverse at the weights that the model has, or its sketch.

        Called with rows `[m, p]` it returns a `Solution`.

        Raises:
            ValueError: if scores are the mean over the checkpoints of a run,
                or the model has other weights than when this was made.
        """
        self._check_one_inverse()
        self.fit(Call(verbose=0))
        return self._inverses.at(None)

    def _check_one_inverse(self) -> None:
        if self.checkpoints is not PRESENT_WEIGHTS:
            raise ValueError(
                "There is an inverse for each checkpoint of a run. Received a "
                f"run of {len(self.checkpoints)}. Load the weights of one "
                "checkpoint and leave out `run=`."
            )
        self.check_weights()

    def index_rows(
        self, projection: Projection | None, keep: Keep
    ) -> RowRecipe:
        """Rows and vectors; `projection` and `keep` as in `Indexable`."""
        if isinstance(self.solver, EKFAC):
            if self.checkpoints is PRESENT_WEIGHTS:
                self.check_weights()
            return whitened_rows(
                self.engine,
                self.checkpoints,
                self._inverses,
                lambda: self.fit(Call(verbose=0)),
                self.settings,
                projection=projection,
                keep=keep,
                exact=self._exact,
            )
        self._check_one_inverse()
        return inverse_rows(
            self.engine,
            self.solver,
            self.settings,
            lambda: self.inverse,
            projection,
            keep,
        )

    def _exact(
        self, ids: np.ndarray, test: Any, prepared: Mapping
    ) -> Attribution:
        # An index may hold examples that were appended, which it tells.
        method = self.keep_only(ids)
        method._inverses = self._inverses.with_prepared(prepared)
        return method.influence(test, verbose=0)

    def fit(self, call: Call) -> None:
        """Prepares the missing inverses, with the progress bar of `call`."""
        self._inverses.fit(self.checkpoints, call.verbose)

    def more_numbers(self, batch: Batch, known: Numbers) -> Numbers:
        """Numbers of regularisers and solver for `batch`, beside `known`."""
        *_, last = self.checkpoints
        return self._inverses.numbers(last, batch)

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query."""
        operator = self._inverses.operator
        # The solvers hold a few vectors for each query.
        return 2 * operator.size * operator.dtype.size

    def stream(self, queries: Queries, sink: Sink, call: Call) -> None:
        """Streams the scores of a block of `queries` to `sink`, for `call`."""
        if self._lengths is not None:
            self._lengths.measure(self.checkpoints, call.verbose)
        scores = self.query_pass(queries, call.verbose)
        sweep(self.engine, scores, sink, call)

    def query_pass(self, queries: Queries, verbose: int = 0) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
            verbose: 0 for silence; else solving for them is announced.
        """
        held: dict[np.int32, tuple] = {}  # for the next chunk, if there is one

        def directions(visit: Visit) -> tuple:
            if visit.position not in held:
                held.clear()
                held[visit.position] = self._inverses.directions(
                    visit.checkpoint, queries, verbose
                )
            return held[visit.position]

        return Pass(
            self.title,
            queries.steps.train.along,
            self.checkpoints,
            queries,
            prepare=directions,
            gather=self._gather,
        )

    def token_pass(self, queries: Queries, tokens: int) -> Pass:
        """The pass that scores `queries` by `tokens` of training examples."""
        if self._lengths is not None:
            self._lengths.measure(self.checkpoints, verbose=0)
        return super().token_pass(queries, tokens)

    def _gather(self, chunk: Chunk) -> Sums:
        if self._lengths is None:
            return Sums(chunk)
        return self._lengths.gather(chunk, self.engine.train)

    def trial_pass(self, queries: Queries) -> Pass:
        """A pass of `queries` that takes as long as `query_pass` at first."""
        solve = self._inverses.directions
        return dataclasses.replace(
            self.query_pass(queries),
            prepare=lambda visit: solve(visit.checkpoint, queries),
        )

    def self_pass(self) -> Pass:
        """The pass that scores `gᵀ(H + λI)⁻¹g`."""
        return solved_pass(self.engine, self._inverses, self.checkpoints)


def _equal_weights(run: TrainingRun, solver: Solver) -> Weights:
    """The checkpoints of a run, whose mean is scored."""
    if not len(run):
        raise ValueError(
            "Influence functions over a run need a checkpoint of it. Received: "
            f"{run!r}. Leave out `run=` for the weights that the model has."
        )
    if isinstance(solver, InverseSketch) and len(run) > 1:
        raise ValueError(
            "An `InverseSketch` is of the weights that it was made at. "
            f"Received a run of {len(run)} checkpoints with it. Use "
            "`RandomizedSketch(dim)`, which makes one for each."
        )
    return dict.fromkeys(run, 1.0 / len(run))


def _is_relative(solver: Solver) -> bool:
    """Whether damping is a multiple of a block's mean eigenvalue."""
    return isinstance(solver, EKFAC) and solver.damping == "relative"


def _check_one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(
            f"`{name}` should be one of {list(allowed)}. Received: {value!r}."
        )
