"""TracIn: influence traced through the checkpoints of a training run.

    TracIn(z, z') = Σ_k η_k ∇ℓ(w_k, z) · ∇ℓ(w_k, z')

Positive scores are proponents: training on z lowers the loss at z'. The
gradients of all layers are used, exactly, without being made where their
factors suffice (sections E and F treat the same products).

Synopsis:

    tracin = kt.TracIn(model, train, "runs/digits")
    tracin.influence(test)       # Attribution [num_test, num_train]
    tracin.top_k(test, k=10)     # TopK
    tracin.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine import collecting
from keras_tracin.engine.collecting import Stream
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.forecast import forecast, forecast_plainly
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.scoring import Queries, Rates, Scorer, nothing
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.sweep import Plan, Sink
from keras_tracin.engine.updated import unequal_shares
from keras_tracin.gradients import flat
from keras_tracin.methods.index_rows import checkpoint_rows
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.methods.rates import (
    checkpoint_rates,
    moving,
    warn_of_final_only,
)
from keras_tracin.methods.training_notes import check_training
from keras_tracin.models.descriptions import describe, describe_optimizer
from keras_tracin.models.exclusive import exclusively
from keras_tracin.projection import Projection
from keras_tracin.results.attribution import (
    Attribution,
    ScoreColumns,
    SelfInfluence,
    TopK,
)
from keras_tracin.runs import TrainingRun, check_checkpoint
from keras_tracin.storage.files import digest


class TracIn:
    """Influence of training examples by TracIn over checkpoints.

    Example:
    ```python
    model.fit(train, epochs=10, callbacks=[kt.TracInCheckpoint("runs/a")])
    tracin = kt.TracIn(model, train, "runs/a")
    top = tracin.top_k(test, k=10)
    top.proponents.ids      # [num_test, 10]
    ```

    The model runs in inference mode: BatchNormalization uses each
    checkpoint's statistics, Dropout is off. Weight regularisers are part of
    the objective but of no example, and are left out. The model has its own
    weights back after every call, and its optimizer is not touched. Calls of
    several threads take turns; predictions of another thread meanwhile are at
    the weights that the model is lent, so let it have a model of its own.

    Args:
        model: the trained model, compiled with its loss.
        train: what `model.fit` took: a batched `tf.data.Dataset` or a tuple
            of arrays, `(x, y)` or `(x, y, sample_weight)`.
        run: a `TrainingRun`, or its directory.
        weights: what a checkpoint counts: `"mean"`, the mean learning rate
            applied since the one before, or `"sum"`, the sum of those rates,
            which is right where intervals differ in length. A checkpoint
            whose rate is zero is skipped with a warning. A variable that
            only some of the steps updated, as where it was frozen, counts
            with its own rates only.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: what a query's influence is measured on: `"loss"` (the
            default), `"logit"` or `"margin"` of the label, or a function
            `(y_true, y_pred) -> [n]` that is lower where the prediction is
            better. Positive scores are proponents in each case.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict the gradients to; by default all
            variables count that training updated, or all trainable ones
            where the run does not know.
        projection: scores sketches of the gradients in place of these
            (sections E and F): `kt.TensorSketch(dim=1024)` and the others.
            Scores are then unbiased estimates; the sketch of a query takes
            `dim` numbers, whatever the size of the model.
        optimizer_aware: score what the optimizer makes of a gradient,

                Σ_k η_k ∇ℓ(w_k, z)ᵀ D_k ∇ℓ(w_k, z'),

            with D_k the diagonal of Adam's or RMSprop's state at checkpoint
            k, 1 / (√(v_k / (1 - β₂ᵗ)) + ε) for Adam, and 1 / (1 - μ) for SGD
            with momentum μ: see `keras_tracin.engine.preconditioner`. The plain
            form is what a step of plain SGD would do. Queries' gradients are
            made in full, so it takes longer and more memory.
        strategy: a `tf.distribute.Strategy` under which the model was built;
            each of its replicas scores a share of every batch. Scores do not
            depend on it.
        jit_compile: whether XLA compiles the steps; "auto" does where there is
            a device other than a CPU, as Keras does in `fit`.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.

    Raises:
        ValueError: if the model is not compiled and no `loss` is given, if
            `layers` names no layer with weights, if data, run and model do
            not fit one another, or if `optimizer_aware` is given with a
            projection, for an optimizer that is not known, or for a run
            whose steps did not all update the same variables.
    """

    def __init__(
        self,
        model: keras.Model,
        train: Any,
        run: TrainingRun | str | os.PathLike,
        *,
        weights: str = "mean",
        loss: Any = None,
        query_loss: Any = None,
        class_weight: Mapping[int, float] | None = None,
        layers: str | keras.Layer | Sequence[str | keras.Layer] | None = None,
        projection: Projection | None = None,
        optimizer_aware: bool = False,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ):
        if optimizer_aware and projection is not None:
            raise ValueError(
                "`optimizer_aware=True` scores whole gradients. Received "
                f"projection={projection!r} as well; leave one of them out."
            )
        if not isinstance(run, TrainingRun):
            run = TrainingRun(run)
        self._rates = checkpoint_rates(run, weights)
        warn_of_final_only(run)
        self._scorer = Scorer(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            class_weight=class_weight,
            layers=layers,
            projection=projection,
            strategy=strategy,
            jit_compile=jit_compile,
            memory_limit=memory_limit,
            checkpoints=self._rates,
        )
        self._rates = moving(self._scorer, self._rates)
        check_training(run, self._scorer)
        if optimizer_aware and self._scorer.shares() is not None:
            raise ValueError(unequal_shares("`optimizer_aware=True`"))
        self._preconditioner = (
            Preconditioner(model) if optimizer_aware else None
        )
        # All of them now: the last is loaded when most of the work is done.
        for checkpoint in run:
            if checkpoint in self._rates:
                check_checkpoint(model, checkpoint)

    @property
    def scorer(self) -> Scorer:
        """The model, its training data and their compiled steps."""
        return self._scorer

    @property
    def rates(self) -> Rates:
        """The checkpoints that count, and what each counts."""
        return self._rates

    @property
    def optimizer_aware(self) -> bool:
        """Whether gradients count as the optimizer uses them."""
        return self._preconditioner is not None

    def among(self, ids: np.ndarray) -> TracIn:
        """The same for only those training examples that have these ids.

        Args:
            ids: of any number of training examples.
        """
        found = copy.copy(self)
        found._scorer = self._scorer.among(ids)
        return found

    @exclusively
    def influence(
        self,
        test: Any,
        *,
        aggregate: bool = False,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            aggregate: sum over the queries: a single row with query id "sum",
                at the cost of a single query.
            directory: where finished parts are kept. A call that was killed
                goes on from them when it is made again; processes of one
                cluster (`TF_CONFIG`) that share the directory share the work.
                The scores are then mapped from a file there, not held in
                memory.
            verbose: 0 for silence; else work of more than two seconds is
                announced and has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]` (or
            `[1, num_train]`), float32. Use them to rank and to compare: with
            `weights="mean"` a checkpoint stands for one step on the example
            alone, not for its share of the batches it was in.

        Raises:
            ValueError: if a gradient is NaN or infinite, naming checkpoint,
                layer and ids, if `test` does not fit the model, or if
                `directory` holds parts of another call.
        """
        if aggregate:
            if directory is not None:
                raise ValueError(
                    "`aggregate=True` makes a single row, in the time of one "
                    "query, and keeps no parts of it. Leave out `directory=`."
                )
            return self._influence_on_sum(test, verbose)
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

        The same as `influence(test).top_k(k)` without ever holding all the
        scores: memory does not grow with the number of training examples.

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
        """Each training example's influence on itself, Σ_k η_k ‖∇ℓ(w_k, z)‖².

        Large for examples that the rest of the data does not explain: rare
        ones and wrongly labelled ones. `query_loss` plays no part.

        Args:
            directory: as in `influence`.
            verbose: 0 for silence.
        """
        scorer = self._kept(directory, "self_influence")
        steps = scorer.train_steps
        step, prepare, held = steps.squared_norms, nothing, 0
        if self._preconditioner is not None:
            step, prepare = steps.weighted_norms, self._diagonals(steps)
            held = self._bytes_of_diagonals
        return collecting.self_influence(
            lambda sink: self._sweep(
                scorer,
                step,
                sink,
                prepare=prepare,
                verbose=verbose,
                held=held,
            ),
            scorer.parts,
        )

    @exclusively
    def plan(self, test: Any = None) -> Plan:
        """What scoring `test` will take; without it, self-influence.

        Print it: examples, checkpoints, and the memory and time it will take
        here. For the time a batch is scored, which takes a moment.

        Raises:
            ValueError: if `test` does not fit the model.
        """
        if not self.optimizer_aware:
            return forecast_plainly(self._scorer, self._rates, test)
        if test is None:
            steps = self._scorer.train_steps
            step, prepare = steps.weighted_norms, self._diagonals(steps)
            return forecast(
                self._scorer,
                self._rates,
                step,
                prepare=prepare,
                held=self._bytes_of_diagonals,
            )
        queries = next(self._blocks(self._scorer, test))
        return forecast(
            self._scorer,
            self._rates,
            queries.steps.train.along,
            test,
            queries=queries,
            prepare=self._weighed(queries),
        )

    def index_rows(
        self, projection: Projection | None, keep: Keep
    ) -> RowRecipe:
        """How an index makes rows and vectors; see `Indexable`."""
        return checkpoint_rows(
            self._scorer,
            self._rates,
            projection,
            optimizer_aware=self.optimizer_aware,
            exact=lambda ids, test: self.among(ids).influence(test, verbose=0),
        )

    def _influence_on_sum(self, test: Any, verbose: int) -> Attribution:
        """One row: every query's gradients are summed before they meet any."""
        queries = self._scorer.all_queries(test)

        def sum_up(checkpoint, *position):
            totals = [
                queries.steps.query.totals(batch.data, *position)
                for batch in queries.batches
            ]
            return tf.nest.map_structure(
                lambda *parts: tf.add_n(parts), *totals
            )

        def weighed(checkpoint):
            return tf.nest.map_structure(
                lambda total, d: total * tf.cast(d, total.dtype),
                sum_up(checkpoint),
                self._diagonals(queries.steps.query)(checkpoint),
            )

        columns = ScoreColumns()
        step = queries.steps.train.contractions
        prepare = weighed if self.optimizer_aware else sum_up
        self._sweep(
            self._scorer, step, Sink(columns.add), queries, prepare, verbose
        )
        return Attribution(columns.scores, np.array(["sum"]), columns.ids)

    def _kept(
        self,
        directory: str | os.PathLike | None,
        call: str,
        test: Any = None,
        **options: Any,
    ) -> Scorer:
        """The scorer of a call, which may keep what is finished of it."""
        shares = self._scorer.shares()
        return self._scorer.keeping(
            directory,
            lambda: {
                "method": "TracIn",
                "call": call,
                "checkpoints": [
                    [one.sha256 or digest(one.path), rate]
                    for one, rate in self._rates.items()
                    if one is not None
                ],
                "projection": describe(self._scorer.projection),
                "optimizer_aware": self.optimizer_aware,
                "optimizer": self._optimizer,
                **({"shares": shares} if shares else {}),
                **options,
            },
            self._rates,
            test,
        )

    @property
    def _optimizer(self) -> Any:
        """What gradients count by, beside the states of the checkpoints."""
        if not self.optimizer_aware:
            return None
        return describe_optimizer(self._scorer.model.optimizer)

    def _blocks(self, scorer: Scorer, test: Any) -> Iterator[Queries]:
        if self._preconditioner is None:
            return scorer.blocks(test)
        # Whole gradients, and the same once more with their weights.
        return scorer.blocks(test, 2 * self._bytes_of_diagonals)

    @property
    def _bytes_of_diagonals(self) -> int:
        """What a number for each trainable weight takes, in float32."""
        variables = self._scorer.model.trainable_variables
        return 4 * sum(map(flat.size_of, variables))

    def _stream(self, scorer: Scorer, verbose: int) -> Stream:
        """Streams the scores of one block of queries."""

        def stream(queries: Queries, sink: Sink) -> None:
            self._sweep(
                scorer,
                queries.steps.train.products,
                sink,
                queries,
                prepare=queries.factors,
                verbose=verbose,
            )

        def aware(queries: Queries, sink: Sink) -> None:
            self._sweep(
                scorer,
                queries.steps.train.along,
                sink,
                queries,
                prepare=self._weighed(queries),
                verbose=verbose,
            )

        return stream if self._preconditioner is None else aware

    def _diagonals(self, steps: GradientFunctions):
        """Of a checkpoint, what its optimizer makes of each entry."""
        assert self._preconditioner is not None
        at = self._preconditioner.at
        return lambda checkpoint: at(checkpoint, steps.variables)

    def _weighed(self, queries: Queries):
        """Of a checkpoint, D times the queries' whole gradients."""
        query, one = queries.steps.query, np.float32(1)
        assert self._preconditioner is not None
        weigh = self._preconditioner.weigh

        def weighed(checkpoint):
            rows = [query.rows(batch.data, one) for batch in queries.batches]
            # Nothing here may keep rows that were cut up: they are large.
            rows = tf.concat(rows, axis=0) if len(rows) > 1 else rows.pop()
            parts = list(flat.directions(rows, query.variables))
            del rows
            return weigh(parts, checkpoint, query.variables)

        return weighed

    def _sweep(
        self,
        scorer: Scorer,
        step,
        sink: Sink,
        queries=None,
        prepare=nothing,
        verbose=1,
        held=0,
    ) -> None:
        scorer.sweep(
            step,
            self._rates,
            sink,
            title="TracIn",
            queries=queries,
            prepare=prepare,
            verbose=verbose,
            held=held,
        )
