"""TracIn: influence traced through the checkpoints of a training run.

    TracIn(z, z') = Σ_k η_k ∇ℓ(w_k, z) · ∇ℓ(w_k, z')

Positive scores are proponents: training on z lowers the loss at z'. The
gradients of all layers are used, exactly, without being made where their
factors suffice (Pruthi et al. 2020, sections E and F, treat the same products).

Synopsis:

    tracin = kt.TracIn(model, train, "runs/digits")
    tracin.influence(test)       # Attribution [num_test, num_train]
    tracin.top_k(test, k=10)     # TopK
    tracin.self_influence()      # SelfInfluence
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.engine.blocks import all_queries
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.passes import Pass, norms_pass, products_pass
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.updated import unequal_shares
from keras_tracin.methods.attributor import Directory, GroupsOfIds
from keras_tracin.methods.by_token import ByToken
from keras_tracin.methods.index_rows import checkpoint_rows
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.methods.rates import (
    checkpoint_rates,
    moving,
    warn_of_final_only,
)
from keras_tracin.methods.tracin_passes import (
    aware_norms_pass,
    aware_products_pass,
    bytes_of_diagonals,
    sum_pass,
)
from keras_tracin.methods.training_notes import check_training
from keras_tracin.models.descriptions import describe, describe_optimizer
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.projection import Projection
from keras_tracin.results import Attribution
from keras_tracin.runs import TrainingRun, check_checkpoint


class TracIn(ByToken):
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

    `self_influence` is Σ_k η_k ‖∇ℓ(w_k, z)‖². It is large for examples that
    the rest of the data does not explain: rare ones and wrongly labelled ones.
    `query_loss` plays no part in it.

    Args:
        model: the trained model, compiled with its loss.
        train: the training examples as `model.fit` took them: a batched
            `tf.data.Dataset` or a tuple of arrays, `(x, y)` or
            `(x, y, sample_weight)`.
        run: a `TrainingRun`, or its directory.
        weights: how checkpoints are weighted: `"mean"`, by the mean learning
            rate applied since the one before, or `"sum"`, by the sum of those
            rates, which is right where intervals differ in length. A
            checkpoint whose rate is zero is skipped with a warning. A
            variable that only some of the steps updated, as where it was
            frozen, is weighted by its own rates only.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: measure of a query's influence: `"loss"` (the
            default), `"logit"` or `"margin"` of the label, or a function
            `(y_true, y_pred) -> [n]` that is lower where the prediction is
            better. Positive scores are proponents in each case.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict the gradients to; by default all
            variables that training updated, or all trainable ones where the
            run does not know.
        projection: scores sketches of the gradients in place of these
            (the same paper, sections E and F): `kt.TensorSketch(dim=1024)`
            and the others. Scores are then unbiased estimates; the sketch of
            a query takes `dim` numbers, whatever the size of the model.
        optimizer_aware: score what the optimizer makes of a gradient,

                Σ_k η_k ∇ℓ(w_k, z)ᵀ D_k ∇ℓ(w_k, z'),

            with D_k a diagonal of the optimizer's state at checkpoint k,
            1 / (√(v_k / (1 - β₂ᵗ)) + ε) for Adam, and 1 / (1 - μ) for SGD
            with momentum μ: see `keras_tracin.engine.preconditioner`, for
            Lamb, Adafactor, Lion and others too. The plain form is what a
            step of plain SGD would do. Queries' gradients are made in full,
            so it takes longer and more memory.
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

    title = "TracIn"

    @exclusive_access
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
        check_is_model(model)
        if optimizer_aware and projection is not None:
            raise ValueError(
                "`optimizer_aware=True` scores whole gradients. Received "
                f"projection={projection!r} as well; leave one of them out."
            )
        if not isinstance(run, TrainingRun):
            run = TrainingRun(run)
        rates = checkpoint_rates(run, weights)
        warn_of_final_only(run)
        self.engine = Engine(
            model,
            train,
            loss=loss,
            query_loss=query_loss,
            class_weight=class_weight,
            layers=layers,
            projection=projection,
            checkpoints=rates,
            execution=Execution.of(strategy, jit_compile, memory_limit),
        )
        self.checkpoints = moving(self.engine, rates)
        check_training(run, self.engine)
        if optimizer_aware and self.engine.shares is not None:
            raise ValueError(unequal_shares("`optimizer_aware=True`"))
        self._preconditioner = (
            Preconditioner(model) if optimizer_aware else None
        )
        # All of them now: the last is loaded when most of the work is done.
        for checkpoint in run:
            if checkpoint in self.checkpoints:
                check_checkpoint(model, checkpoint)

    @exclusive_access
    def influence(
        self,
        test: Any,
        *,
        groups: GroupsOfIds | None = None,
        contrast: Any = None,
        aggregate: bool = False,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            groups: a dict of ids of training examples by the group's name (or
                the ids of a single group): scores are then sums over each
                group, and `train_ids` the groups' names.
            contrast: a query for each of `test`, such as the same prompt with
                another answer: scores are then those of ℓ(test) − ℓ(contrast),
                positive where training on the example favours `test`.
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
                layer and ids, if `test` does not fit the model, if `groups`
                holds ids that are not among the training examples, or if
                `directory` holds parts of another call.
        """
        if not aggregate:
            return self._influence(test, groups, contrast, directory, verbose)
        if directory is not None:
            raise ValueError(
                "`aggregate=True` makes a single row, in the time of one "
                "query, and keeps no parts of it. Leave out `directory=`."
            )
        return self._influence(
            test, groups, contrast, None, verbose, aggregate=True
        )

    @property
    def optimizer_aware(self) -> bool:
        """Whether gradients are scored as the optimizer uses them."""
        return self._preconditioner is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        optimizer = self.model.optimizer if self.optimizer_aware else None
        return {
            "projection": describe(self.engine.projection),
            "optimizer_aware": self.optimizer_aware,
            "optimizer": optimizer and describe_optimizer(optimizer),
        }

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {
            **self.engine.losses["objective"],
            "optimizer_aware": self.optimizer_aware,
        }

    def describe(self) -> dict[str, Any]:
        """The method, its options and the weights it scores at, as JSON."""
        shares = self.engine.shares
        return super().describe() | ({"shares": shares} if shares else {})

    def blocks(self, test: Any, call: Call):
        """The queries in blocks that are scored together.

        Args:
            test: the queries.
            call: the call that they are for.
        """
        if call.options.get("aggregate"):
            return iter([_Sum(all_queries(self.engine, test))])
        return super().blocks(test, call)

    def stream(self, queries: Queries | _Sum, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink.

        Args:
            queries: the queries.
            sink: takes the scores.
            call: the call that they are for.
        """
        if not isinstance(queries, _Sum):
            return super().stream(queries, sink, call)
        aware = self._preconditioner
        work = sum_pass(self.title, queries.queries, self.checkpoints, aware)
        return sweep(self.engine, work, sink, call)

    def query_pass(self, queries: Queries) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
        """
        given = self.title, queries, self.checkpoints
        if self._preconditioner is None:
            return products_pass(*given)
        return aware_products_pass(*given, self._preconditioner)

    def index_rows(
        self, projection: Projection | None, keep: Keep
    ) -> RowRecipe:
        """How an index makes its rows and the vectors of queries.

        Args:
            projection: makes the sketches, `TensorSketch(1024)` by default.
            keep: as in `Indexable`; nothing is kept.

        Raises:
            TypeError: if nothing can be projected by such a projection.
            ValueError: if scores are not products of plain gradients, or the
                projection keeps its sides apart.
        """
        return checkpoint_rows(
            self.engine,
            self.checkpoints,
            projection,
            optimizer_aware=self.optimizer_aware,
            exact=self._exact,
        )

    def _exact(self, ids: np.ndarray, test: Any) -> Attribution:
        # An index may hold examples that were appended, which it tells.
        return self.keep_only(ids).influence(test, verbose=0)

    def self_pass(self) -> Pass:
        """The pass that scores Σ_k η_k ‖∇ℓ(w_k, z)‖²."""
        given = self.title, self.engine.train_steps, self.checkpoints
        if self._preconditioner is None:
            return norms_pass(*given)
        return aware_norms_pass(*given, self._preconditioner)

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query; None if its factors are held."""
        if self._preconditioner is None:
            return None
        # Whole gradients, and the same once more with their weights.
        return 2 * bytes_of_diagonals(self.model)


@dataclasses.dataclass(frozen=True)
class _Sum:
    """The sum of all queries, as a single one."""

    queries: Queries

    @property
    def ids(self) -> np.ndarray:
        return np.array(["sum"])
