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
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
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
from keras_tracin.data.examples import Batch, check_unique, content_digest
from keras_tracin.engine import collecting
from keras_tracin.engine.collecting import Stream
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.scoring import PRESENT_WEIGHTS, Queries, Scorer
from keras_tracin.engine.sweep import Chunk, Sink
from keras_tracin.gradients import flat
from keras_tracin.losses.output_kinds import (
    SAMPLE,
    check_consistent,
    outputs_of,
)
from keras_tracin.losses.per_example import penalty_weight
from keras_tracin.methods.index_rows import inverse_rows
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusively
from keras_tracin.models.state import preserved
from keras_tracin.projection import Projection
from keras_tracin.results.attribution import Attribution, SelfInfluence, TopK
from keras_tracin.runs.manifest import weights_digest

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


class InfluenceFunctions:
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
        self._inverted_at: str | None = None
        self._scorer = Scorer(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            layers=layers,
            strategy=strategy,
            jit_compile=jit_compile,
            memory_limit=memory_limit,
        )

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
        self._check_weights()
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

    def index_rows(
        self, projection: Projection | None, keep: Keep
    ) -> RowRecipe:
        """How an index makes rows and vectors; see `Indexable`."""
        self._check_weights()
        return inverse_rows(
            self._scorer,
            self.solver,
            self.settings,
            lambda: self.inverse,
            projection,
            keep,
        )

    @functools.cached_property
    def _inverse(self) -> Inverse:
        with preserved(self._scorer.model):
            return self._prepare_inverse()

    def _prepare_inverse(self) -> Inverse:
        self._warn_unless_at_rest()
        self._inverted_at = weights_digest(self._scorer.model)
        if self._curvature == "ekfac":
            groups = self._scorer.train_steps.variables
            operator = self._operator
            return fit_ekfac(operator, groups, self._layers, self._damping)
        return self._solver.prepare(Damped(self._operator, self._damping))

    @functools.cached_property
    def _operator(self) -> Hessian | GaussNewton:
        scorer = self._scorer
        groups = scorer.train_steps.variables
        options: dict[str, Any] = {}
        if self._curvature != "hessian":
            x = scorer.train.first(SAMPLE).x
            seen = outputs_of(scorer.model, self._loss, x)
            check_consistent(seen)
            options["see_outputs"] = seen.with_logits
        return _CURVATURES[self._curvature](
            scorer.model,
            scorer.loss,
            scorer.train,
            tuple(variable for group in groups for variable in group),
            self._penalty,
            scorer.memory_limit,
            scorer.strategy,
            scorer.jit_compile,
            **options,
        )

    def _warn_unless_at_rest(self) -> None:
        squares: list[np.ndarray] = []
        self._scorer.sweep(
            self._scorer.train_steps.squared_norms,
            PRESENT_WEIGHTS,
            Sink(lambda ids, found: squares.append(found)),
            title="Influence functions",
            verbose=0,
        )
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

    def _kept(
        self,
        directory: str | os.PathLike | None,
        call: str,
        test: Any = None,
        **options: Any,
    ) -> Scorer:
        """The scorer of a call, which may keep what is finished of it."""
        scorer = self._scorer
        kept = scorer.keeping(
            directory,
            lambda: {
                "method": "InfluenceFunctions",
                "call": call,
                "weights": weights_digest(scorer.model),
                "solver": describe(self.solver),
                # All of them have a part in the curvature.
                "train": content_digest(scorer.train.batches(_DIGESTED)),
                **self.settings,
                **options,
            },
            PRESENT_WEIGHTS,
            test,
            self._curvature_numbers,
        )
        self._check_weights()
        return kept

    def _curvature_numbers(self, batch: Batch, numbers: Numbers) -> Numbers:
        """What regularisers and a solver of the user's own compute."""
        weights = self._scorer.model.weights
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
            rows = self._scorer.train_steps.rows(batch.data, np.float32(1))
            solved = self._solved(tf.reduce_mean(rows, axis=0, keepdims=True))
            found["solution"] = tf.norm(solved, axis=1).numpy()
        return found

    def _check_weights(self) -> None:
        """Raises ValueError if the inverse is that of other weights."""
        now = weights_digest(self._scorer.model)
        if self._inverted_at not in (None, now):
            raise ValueError(
                "The inverse of the curvature was made at other weights than "
                f"the model '{self._scorer.model.name}' has now, for "
                "gradients at which it says nothing. Make another "
                "`InfluenceFunctions`, or give the model its weights back."
            )

    def _blocks(self, scorer: Scorer, test: Any):
        operator = self._operator
        # The solvers hold a few vectors for each query.
        return scorer.blocks(test, 2 * operator.size * operator.dtype.size)

    def _solved(self, rows: tf.Tensor) -> tf.Tensor:
        solution = self._inverse(tf.cast(rows, self._operator.dtype))
        report(solution, type(self._solver).__name__)
        return tf.cast(solution.value, rows.dtype)

    def _stream(self, scorer: Scorer, verbose: int) -> Stream:
        """Streams the scores of one block of queries."""

        def stream(queries: Queries, sink: Sink) -> None:
            query, one = queries.steps.query, np.float32(1)
            with preserved(scorer.model):
                found = [query.rows(b.data, one) for b in queries.batches]
                rows = tf.concat(found, axis=0)
                if not np.isfinite(rows).all():
                    scorer.raise_not_finite(queries)
                solved = self._solved(rows)
            directions = flat.directions(solved, query.variables)
            scorer.sweep(
                queries.steps.train.along,
                PRESENT_WEIGHTS,
                self._divided(sink),
                title="Influence functions",
                queries=queries,
                prepare=lambda checkpoint: directions,
                verbose=verbose,
            )

        return stream

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

        def measure(rows):
            solved = self._solved(rows)
            if kind == "loss":
                return tf.reduce_sum(rows * solved, axis=1)
            return tf.norm(solved, axis=1)

        return collecting.self_influence(
            lambda sink: scorer.sweep(
                scorer.train_steps.rows,
                PRESENT_WEIGHTS,
                sink,
                title="Influence functions",
                finish=measure,
                verbose=verbose,
            ),
            scorer.parts,
        )


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
