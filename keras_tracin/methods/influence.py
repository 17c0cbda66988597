"""Influence functions: how the minimum moves when an example weighs less.

    score(z, z') = ∇ℓ(ŵ, z')ᵀ (H + λI)⁻¹ ∇ℓ(ŵ, z)

H is the curvature of the training objective at the trained weights ŵ (Pruthi
et al. 2020, section A.1; Koh & Liang 2017). Positive scores are proponents:
this is the *negative* of eq. 2. Divided by the number of training examples, it
is, to first order, the rise of the query's loss when z is left out and
training starts again.

Synopsis:

    method = kt.InfluenceFunctions(model, train, damping=0.01)
    method.influence(test)       # Attribution [num_test, num_train]
    method.top_k(test, k=10)     # TopK
    method.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.curvature.inverses import Inverses
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.operators import check_damping
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
)
from keras_tracin.data.examples import Batch, check_unique, content_digest
from keras_tracin.engine import collecting
from keras_tracin.engine.collecting import Stream
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.scoring import (
    PRESENT_WEIGHTS,
    Queries,
    Rates,
    Scorer,
)
from keras_tracin.engine.sweep import Chunk, Sink
from keras_tracin.gradients import flat
from keras_tracin.losses.output_kinds import (
    SAMPLE,
    check_consistent,
    outputs_of,
)
from keras_tracin.losses.per_example import penalty_weight
from keras_tracin.methods.training_notes import check_training
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusively
from keras_tracin.results.attribution import Attribution, SelfInfluence, TopK
from keras_tracin.runs import (
    Checkpoint,
    TrainingRun,
    check_checkpoint,
    run_weights,
)
from keras_tracin.runs.manifest import weights_digest
from keras_tracin.storage.files import digest

_TITLE = "Influence functions"
_CURVATURES = (None, "hessian", "gauss_newton", "ekfac")
_RELATIVE = (None, "loss", "parameters")
# Their fields describe them completely.
_SOLVERS = (Arnoldi, CG, EKFAC, Exact, InverseSketch, LiSSA, RandomizedSketch)
_DIGESTED = 256  # examples at a time

# Relative to the typical length of one example's gradient: above this, the
# gradient of the objective is more than the noise of the last steps.
_AT_REST = 0.1


class InfluenceFunctions:
    """Influence of training examples at the minimum of the objective.

    Example:
    ```python
    method = kt.InfluenceFunctions(model, train, damping=0.01)
    scores = method.influence(test).scores / num_train
    # about: loss of each query without the example - loss with it
    ```

    The weights are taken to minimise the objective; a warning gives the length
    of its gradient where they do not. The inverse of the curvature is prepared
    by the first call and kept: after training further, make another object.

    With `run=`, scores are the mean over the run's checkpoints, each with its
    own curvature and all of them of equal weight. Before the end of training,
    gradients have not vanished yet, and on networks such means predict better;
    the damping that serves best is then another. What each checkpoint's
    inverse needs is kept.

    The objective is the mean loss plus weight regularisers as Keras adds them:
    with their full weight beside a mean over the batch, with `1 / batch_size`
    of it beside a sum. The model runs in inference mode and is not changed.

    `self_influence` and `relative` solve once for *each training example*:
    with `CG` or `LiSSA` this takes about as many passes over the data as
    there are batches, times their steps. `Arnoldi`, `EKFAC` and
    `RandomizedSketch` (and `Exact`, for small networks) do all but a few
    products beforehand.

    Args:
        model: the trained model, compiled with its loss.
        train: what `model.fit` took, as in `TracIn`.
        run: a `TrainingRun` or its directory; `run[3::4]` takes every fourth
            checkpoint. By default, scores are at the weights that the model
            has now.
        damping: λ, added to every eigenvalue of the curvature. A larger one
            makes solving easier, and is needed where the Hessian has negative
            eigenvalues; then let it exceed the smallest one's size.
        curvature: `"hessian"` (the default); `"gauss_newton"`, which has no
            negative eigenvalues (Martens 2020) and is the default of
            `EKFAC()`; or `"ekfac"`, short for `"gauss_newton"` with
            `solver=EKFAC()`.
        solver: `CG()` (the default), `EKFAC()`, `Exact()`, `LiSSA()`,
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

    Raises:
        ValueError: if `damping` is negative, an option is unknown, curvature
            and solver do not go together, the run holds no checkpoint or does
            not fit, the model is not compiled and no `loss` is given, or it
            computes in half precision.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        *,
        run: TrainingRun | str | os.PathLike | None = None,
        damping: float,
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
        check_damping(damping)
        _check_one_of("curvature", curvature, _CURVATURES)
        _check_one_of("relative", relative, _RELATIVE)
        self._curvature, self._solver = _resolve(curvature, solver)
        self._damping = damping
        self._layers = layers
        self._loss = loss
        self._relative = relative
        self._penalty = penalty_weight(model, loss, batch_size)
        if run is not None and not isinstance(run, TrainingRun):
            run = TrainingRun(run)
        self._weights = PRESENT_WEIGHTS if run is None else _equal_weights(run)
        self._check_solver()
        if relative is not None and len(self._weights) > 1:
            raise ValueError(
                "`relative` is of one checkpoint. Received: "
                f"{relative=} and a run of {len(self._weights)}."
            )
        self._scorer = Scorer(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            class_weight=class_weight,
            layers=layers,
            strategy=strategy,
            jit_compile=jit_compile,
            memory_limit=memory_limit,
        )
        if run is not None:
            check_training(run, self._scorer)
            for checkpoint in run:
                check_checkpoint(model, checkpoint)
        self._digest = weights_digest(model)
        self._inverses = Inverses(self._make_operator, damping, self._solver)

    @exclusively
    def influence(
        self,
        test: Any,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            directory: where finished parts are kept, as in `TracIn`; the
                inverse is made, and queries are solved, again.
            verbose: 0 for silence; else long work has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`.

        Raises:
            ValueError: if a gradient is NaN or infinite, naming layer and
                ids, if something cannot be differentiated, or if `test` does
                not fit the model.
        """
        scorer = self._kept(directory, "influence", test)
        return collecting.influence(
            self._blocks(scorer, test),
            self._stream(scorer, verbose),
            scorer.parts,
        )

    @exclusively
    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        Args:
            test: the queries, in the same form as `train`.
            k: how many on each side.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        scorer = self._kept(directory, "top_k", test, k=k)
        return collecting.top_k(
            self._blocks(scorer, test),
            self._stream(scorer, verbose),
            k,
            scorer.train.size,
            scorer.parts,
        )

    @exclusively
    def self_influence(
        self,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> SelfInfluence:
        """Each training example's influence on itself, `gᵀ(H + λI)⁻¹g`.

        One solution per training example; see the class. `query_loss` and
        `relative` play no part.

        Args:
            directory: as in `influence`.
            verbose: 0 for silence.
        """
        scorer = self._kept(directory, "self_influence")
        return self._of_each(scorer, "loss", verbose)

    @exclusively
    def group_influence(
        self,
        test: Any,
        groups: Iterable[Any] | Mapping[str, Iterable[Any]],
        *,
        verbose: int = 1,
    ) -> Attribution:
        """The summed scores of sets of training examples.

        Divided by the number of training examples, this is to first order by
        how much a query's loss rises when the whole set is left out; larger
        sets are underestimated more (Koh et al. 2019).

        Args:
            test: the queries, in the same form as `train`.
            groups: the ids of one set, or a dict of sets by name.
            verbose: 0 for silence.

        Returns:
            An `Attribution` with a column for each set, `train_ids` their
            names ("group" for one without).

        Raises:
            ValueError: if an id is not among the training examples.
        """
        named = groups if isinstance(groups, Mapping) else {"group": groups}
        members = {name: set(ids) for name, ids in named.items()}
        return collecting.influence(
            self._blocks(self._scorer, test),
            _summed(self._stream(self._scorer, verbose), members),
        )

    @property
    def scorer(self) -> Scorer:
        """The model, its training data and their compiled steps."""
        return self._scorer

    @property
    def settings(self) -> dict[str, Any]:
        """What scores depend on, beside model, data and solver."""
        return {
            "damping": self._damping,
            "curvature": self._curvature,
            "relative": self._relative,
            "penalty": self._penalty,
            "regularizers": [
                describe(getattr(weight, "regularizer", None))
                for weight in self._scorer.model.weights
            ],
        }

    @property
    def solver(self) -> Solver:
        """How the curvature is inverted."""
        return self._solver

    @property
    @exclusively
    def inverse(self) -> Inverse:
        """The inverse at the weights that the model has; a sketch's is itself.

        Called with rows `[m, p]` it returns a `Solution`.

        Raises:
            ValueError: if scores are the mean over the checkpoints of a run,
                or the model has other weights than when this was made.
        """
        if self._weights != PRESENT_WEIGHTS:
            raise ValueError(
                "There is one inverse for each checkpoint of the run. Received "
                f"a run of {len(self._weights)}; expected none. Load the "
                "weights of one checkpoint and leave out `run=`."
            )
        self._fit(verbose=0)
        return self._inverses.at(None)

    def _make_operator(self) -> Hessian | GaussNewton:
        scorer = self._scorer
        groups = scorer.train_steps.variables
        arguments = (
            scorer.model,
            scorer.loss,
            scorer.train,
            tuple(variable for group in groups for variable in group),
            self._penalty,
            scorer.memory_limit,
            scorer.strategy,
            scorer.jit_compile,
        )
        if self._curvature == "hessian":
            return Hessian(*arguments)
        x = scorer.train.first(SAMPLE).x
        outputs = outputs_of(scorer.model, self._loss, x)
        check_consistent(outputs)
        return GaussNewton(*arguments, outputs.with_logits, self._layers)

    def _fit(self, verbose: int) -> None:
        """Prepares the inverse at every checkpoint, unless that is done."""
        self._check_weights()
        *_, last = self._weights
        with run_weights(self._scorer.model) as load:
            for checkpoint in self._weights:
                if self._inverses.has(checkpoint):
                    continue
                if checkpoint is not None:
                    load(checkpoint)
                if checkpoint == last:  # earlier ones are at no minimum
                    self._warn_unless_at_rest()
                self._inverses.at(checkpoint, verbose)

    def _warn_unless_at_rest(self) -> None:
        squares: list[np.ndarray] = []
        self._scorer.sweep(
            self._scorer.train_steps.squared_norms,
            PRESENT_WEIGHTS,
            Sink(lambda ids, norms: squares.append(norms)),
            title=_TITLE,
            verbose=0,
        )
        typical = float(np.sqrt(np.concatenate(squares).mean()))
        length = float(tf.norm(self._inverses.operator.gradient()))
        if length > _AT_REST * typical:
            warnings.warn(
                "The model has not converged: the gradient of its objective "
                f"has length {length:.2g}, {length / typical:.0%} of that of "
                "one example's loss. Influence functions describe a minimum; "
                "train on, or use `TracIn`, which does not need one.",
                stacklevel=2,
            )

    def _kept(
        self,
        directory: str | os.PathLike | None,
        call: str,
        test: Any = None,
        **options: Any,
    ) -> Scorer:
        """The scorer of a call, which may keep what is finished of it."""
        scorer = self._scorer
        self._check_weights()
        return scorer.keeping(
            directory,
            lambda: {
                "method": "InfluenceFunctions",
                "call": call,
                **self._describe_weights(),
                "solver": self._describe_solver(),
                # All of them have a part in the curvature.
                "train": content_digest(scorer.train.batches(_DIGESTED)),
                **self.settings,
                **options,
            },
            self._weights,
            test,
            self._curvature_numbers,
        )

    def _describe_weights(self) -> dict[str, Any]:
        if self._weights == PRESENT_WEIGHTS:
            return {"weights": self._digest}
        return {
            "checkpoints": [
                checkpoint.sha256 or digest(checkpoint.path)
                for checkpoint in self._weights
                if checkpoint is not None
            ]
        }

    def _describe_solver(self) -> Any:
        # `curvature` says as much of EK-FAC, and did in earlier versions.
        return describe(None if self._curvature == "ekfac" else self._solver)

    def _curvature_numbers(self, batch: Batch, numbers: Numbers) -> Numbers:
        """What regularisers and a solver of the user's own compute."""
        *_, last = self._weights
        weights = self._scorer.model.weights
        more = {
            "penalties": np.array(
                [
                    float(weight.regularizer(weight.value))
                    for weight in weights
                    if getattr(weight, "regularizer", None) is not None
                ]
            )
        }
        if type(self._solver) not in _SOLVERS:
            rows = self._scorer.train_steps.rows(batch.data, np.float32(1))
            mean = tf.reduce_mean(rows, axis=0, keepdims=True)
            solved = self._inverses.solve(last, mean)
            more["solution"] = tf.norm(solved, axis=1).numpy()
        return more

    def _check_weights(self) -> None:
        """Raises ValueError if the model has other weights than at first."""
        if self._weights != PRESENT_WEIGHTS:
            return
        if weights_digest(self._scorer.model) != self._digest:
            raise ValueError(
                "This `InfluenceFunctions` was made at other weights than the "
                f"model '{self._scorer.model.name}' has now, and says nothing "
                "of these. Make another, or give the model its weights back."
            )

    def _check_solver(self) -> None:
        """Refuses a sketch of one inverse for several checkpoints."""
        if isinstance(self._solver, InverseSketch) and len(self._weights) > 1:
            raise ValueError(
                "An `InverseSketch` is of the weights that it was made at. "
                f"Received a run of {len(self._weights)} checkpoints with it. "
                "Use `RandomizedSketch(dim)`, which makes one for each."
            )

    def _blocks(self, scorer: Scorer, test: Any):
        operator = self._inverses.operator
        # The solvers hold a few vectors for each query.
        return scorer.blocks(test, 2 * operator.size * operator.dtype.size)

    def _stream(self, scorer: Scorer, verbose: int) -> Stream:
        """Streams the scores of one block of queries."""

        def stream(queries: Queries, sink: Sink) -> None:
            self._fit(verbose)
            scorer.sweep(
                queries.steps.train.along,
                self._weights,
                self._divided(sink),
                title=_TITLE,
                queries=queries,
                prepare=self._directions(queries, verbose),
                verbose=verbose,
            )

        return stream

    def _directions(self, queries: Queries, verbose: int):
        """Of a checkpoint, the queries' gradients times the inverse."""
        query, one = queries.steps.query, np.float32(1)

        @functools.lru_cache(maxsize=1)  # for the next chunk, if there is one
        def directions(checkpoint: Checkpoint | None):
            rows = [query.rows(batch.data, one) for batch in queries.batches]
            rows = tf.concat(rows, axis=0)
            if not np.isfinite(rows).all():
                self._scorer.raise_not_finite(queries)
            solved = self._inverses.solve(checkpoint, rows, verbose)
            return flat.directions(solved, query.variables)

        return directions

    def _divided(self, sink: Sink) -> Sink:
        """Divides the columns by what `relative` asks for, as they come."""
        if self._relative is None:
            return sink
        lengths = np.zeros(0)

        def wants(chunk: Chunk) -> bool:
            nonlocal lengths
            lengths = self._lengths[chunk.start : chunk.start + len(chunk)]
            return sink.wants(chunk)

        def divide(ids: np.ndarray, scores: np.ndarray) -> None:
            scores = np.divide(
                scores, lengths, out=np.zeros_like(scores), where=lengths > 0
            )
            sink.add(ids, scores)

        return Sink(divide, wants)

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        """What `relative` divides by, `[n]` in reading order."""
        assert self._relative is not None
        found = self._of_each(self._scorer, self._relative, verbose=0).scores
        if self._relative == "loss":
            return np.sqrt(np.maximum(found, 0))
        return found

    def _of_each(
        self, scorer: Scorer, kind: str, verbose: int
    ) -> SelfInfluence:
        """`gᵀ(H + λI)⁻¹g` ("loss") or `‖(H + λI)⁻¹g‖` of each example."""
        self._fit(verbose)
        count, current = len(self._weights), None

        def prepare(checkpoint):
            nonlocal current
            current = checkpoint

        def measure(rows):
            solved = self._inverses.solve(current, rows)
            if kind == "loss":
                # Rows are gradients times 1 / count, of which it takes one.
                return count * tf.reduce_sum(rows * solved, axis=1)
            return tf.norm(solved, axis=1)

        return collecting.self_influence(
            lambda sink: scorer.sweep(
                scorer.train_steps.rows,
                self._weights,
                sink,
                title=_TITLE,
                prepare=prepare,
                finish=measure,
                verbose=verbose,
            ),
            scorer.parts,
        )


def _resolve(
    curvature: str | None, solver: Solver | None
) -> tuple[str, Solver]:
    """The curvature and the solver that go together.

    The curvature that EK-FAC approximates is called "ekfac", as in the jobs
    and indexes of earlier versions.
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
    if layered or curvature == "ekfac":
        return "ekfac", solver or EKFAC()
    return curvature or "hessian", CG() if solver is None else solver


def _equal_weights(run: TrainingRun) -> Rates:
    if not len(run):
        raise ValueError(
            "Influence functions over a run need a checkpoint of it. Received: "
            f"{run!r}. Leave out `run=` for the weights that the model has."
        )
    return dict.fromkeys(run, 1.0 / len(run))


def _summed(stream: Stream, members: Mapping[str, set]):
    """Streams one column for each group instead of one for each example."""
    names = np.array(list(members))

    def stream_groups(queries: Queries, sink: Sink) -> None:
        sums = np.zeros((len(queries.ids), len(names)))
        missing = {name: set(ids) for name, ids in members.items()}
        seen: list[np.ndarray] = []
        asked = np.array(list(set().union(*members.values())))

        def add(ids: np.ndarray, scores: np.ndarray) -> None:
            known = ids.tolist()
            seen.append(ids[np.isin(ids, asked)])
            for column, name in enumerate(members):
                inside = [one in members[name] for one in known]
                sums[:, column] += scores[:, inside].sum(axis=1)
                missing[name].difference_update(known)

        stream(queries, Sink(add))
        check_unique(np.concatenate(seen), "train")
        lost = {name: sorted(ids)[:5] for name, ids in missing.items() if ids}
        if lost:
            raise ValueError(
                "`groups` should hold ids of training examples. Received ids "
                f"that are not among them: {lost}."
            )
        sink.add(names, sums)

    return stream_groups


def _check_one_of(name: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(
            f"`{name}` should be one of {list(allowed)}. Received: {value!r}."
        )
