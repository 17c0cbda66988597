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
from typing import Any, Literal

import keras
import numpy as np

from keras_tracin.engine.blocks import all_queries
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.updated import unequal_shares
from keras_tracin.methods.attributor import Directory, GroupsOfIds
from keras_tracin.methods.by_token import ByToken
from keras_tracin.methods.contrast import about_both
from keras_tracin.methods.index_rows import checkpoint_rows
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.methods.pairs import Pair, blocks_of_pairs, digest_of
from keras_tracin.methods.rates import (
    checkpoint_rates,
    moving,
    warn_of_final_only,
)
from keras_tracin.methods.tracin_passes import Measurement, bytes_of_diagonals
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

    `self_influence` is Σ_k η_k s_k(z, z), with ‖∇ℓ(w_k, z)‖² for s_k (its root
    under `normalize="train"`). It is large for examples that
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
        normalize: `"train"` divides the score at each checkpoint,
            s_k(z, z'), by √s_k(z, z), the length of the training example's
            gradient, so that examples with large gradients, which are
            opponents or proponents of everything, do not crowd out the rest;
            `"both"` also by that of the query's, which makes it a cosine.
            Weights of whole examples cancel.
        optimizer_aware: score what the optimizer makes of a gradient,

                s_k(z, z') = ∇ℓ(w_k, z)ᵀ D_k ∇ℓ(w_k, z'),

            with D_k a diagonal of the optimizer's state at checkpoint k,
            1 / (√(v_k / (1 - β₂ᵗ)) + ε) for Adam, and 1 / (1 - μ) for SGD
            with momentum μ: see `keras_tracin.engine.preconditioner`, for
            Lamb, Adafactor, Lion and others too. The plain form is what a
            step of plain SGD would do. Queries' gradients are made in full,
            so it takes longer and more memory; with a projection, of
            √D_k ∇ℓ, those of training examples too. `"factored"` takes the
            outer product of rows and columns that is nearest to D_k in
            logarithms, for each kernel and table, and has the cost of plain
            gradients; vectors keep their D_k.
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
            not fit one another, or if `optimizer_aware` is given for an
            optimizer that is not known, or for a run whose steps did not all
            update the same variables.
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
        normalize: Literal["train", "both"] | None = None,
        optimizer_aware: bool | Literal["factored"] = False,
        strategy: Strategy | None = None,
        jit_compile: bool | str = "auto",
        memory_limit: int | None = None,
    ):
        check_is_model(model)
        _check_options(normalize, optimizer_aware)
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
            option = f"`optimizer_aware={optimizer_aware!r}`"
            raise ValueError(unequal_shares(option))
        self._measurement = Measurement(
            normalize,
            Preconditioner(model) if optimizer_aware else None,
            optimizer_aware == "factored",
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
        query_tokens: Any = None,
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
            query_tokens: which of the labels' positions are asked about, an
                answer and not the prompt: booleans or numbers
                `[num_test, tokens]`, or `[tokens]`. Weights are multiplied by
                them, those of `contrast` too.
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
                holds ids that are not among the training examples, if a query
                asks about none of its tokens, or if `directory` holds parts of
                another call.
        """
        test, contrast = about_both(test, contrast, query_tokens)
        if aggregate and contrast is not None and self.normalize == "both":
            raise ValueError(
                "Under normalize='both' the difference of each pair's "
                "gradients has unit length, and `aggregate=True` takes no "
                "pairs. Received a `contrast` as well; leave one of them out."
            )
        if aggregate and directory is not None:
            raise ValueError(
                "`aggregate=True` makes a single row, in the time of one "
                "query, and keeps no parts of it. Leave out `directory=`."
            )
        options = {"aggregate": True} if aggregate else {}
        pairs = self.as_contrasted(test, contrast)
        return self._influence(*pairs, groups, directory, verbose, **options)

    def as_contrasted(self, test: Any, contrast: Any) -> tuple[Any, Any]:
        """Both sides as `blocks` takes them, for scores to be subtracted.

        Args:
            test: the queries.
            contrast: a query for each of them, or None.
        """
        if contrast is None or self.normalize != "both":
            return test, contrast
        return Pair(test, contrast), Pair(contrast, test)

    @property
    def normalize(self) -> Literal["train", "both"] | None:
        """Whose gradients are divided by their lengths."""
        return self._measurement.normalize

    @property
    def optimizer_aware(self) -> bool | Literal["factored"]:
        """Whether gradients are scored as the optimizer uses them."""
        measurement = self._measurement
        if measurement.aware is not None and measurement.factored:
            return "factored"
        return measurement.aware is not None

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        optimizer = self.model.optimizer if self.optimizer_aware else None
        normalized = {"normalize": self.normalize} if self.normalize else {}
        return {
            "projection": describe(self.engine.projection),
            **normalized,
            "optimizer_aware": self.optimizer_aware,
            "optimizer": optimizer and describe_optimizer(optimizer),
        }

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {
            **self.engine.losses["objective"],
            "normalize": self.normalize,
            "optimizer_aware": self.optimizer_aware,
        }

    @property
    def against_recurring(self) -> str:
        """What to do where all queries have the same strongest examples."""
        if self.normalize:
            return "Look at them: their length is divided out already."
        return "Look at them, or pass `normalize='train'` to divide by length."

    @property
    def no_self_influence(self) -> str | None:
        """Why there is no self-influence, and what to use; None if there is."""
        if self.normalize != "both":
            return None
        return (
            "Under normalize='both' every training example has the same score "
            "for itself, the sum of the checkpoints' weights. Use "
            "normalize='train', by which it is the length of the gradient, or "
            "leave it out."
        )

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
        if isinstance(test, Pair):
            nbytes = self.bytes_per_query
            return blocks_of_pairs(self.engine, test, call, nbytes)
        return super().blocks(test, call)

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk.

        Args:
            test: the queries, if there are any.
        """
        if not isinstance(test, Pair):
            return super().job(test)
        other = digest_of(self.engine, test.other)
        return {**super().job(test.asked), "contrast": other}

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """Numbers that scores are computed from, and their largest difference.

        Args:
            test: the queries, if there are any.
        """
        asked = test.asked if isinstance(test, Pair) else test
        return super().fingerprint(asked)

    def stream(self, queries: Queries | _Sum, sink: Sink, call: Call) -> None:
        """Streams the scores of one block of queries into a sink.

        Args:
            queries: the queries.
            sink: takes the scores.
            call: the call that they are for.
        """
        if not isinstance(queries, _Sum):
            return super().stream(queries, sink, call)
        given = self.title, queries.queries, self.checkpoints
        work = self._measurement.sum_pass(*given)
        return sweep(self.engine, work, sink, call)

    def query_pass(self, queries: Queries) -> Pass:
        """The pass that scores a block of queries.

        Args:
            queries: the queries.
        """
        given = self.title, queries, self.checkpoints
        return self._measurement.query_pass(*given)

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
            plain=self._measurement.plain,
            exact=self._exact,
        )

    def _exact(self, ids: np.ndarray, test: Any) -> Attribution:
        # An index may hold examples that were appended, which it tells.
        return self.keep_only(ids).influence(test, verbose=0)

    def self_pass(self) -> Pass:
        """The pass that scores Σ_k η_k ‖∇ℓ(w_k, z)‖²."""
        given = self.title, self.engine.train_steps, self.checkpoints
        return self._measurement.self_pass(*given)

    @property
    def bytes_per_query(self) -> int | None:
        """Bytes that are held for each query; None if its factors are held."""
        if not self._measurement.in_full(self.engine.train_steps):
            return None
        # Whole gradients, and the same once more with their weights.
        return 2 * bytes_of_diagonals(self.model)


def _check_options(normalize: Any, optimizer_aware: Any) -> None:
    if normalize not in (None, "train", "both"):
        raise ValueError(
            "`normalize` should be 'train', 'both' or None. Received: "
            f"{normalize!r}."
        )
    if optimizer_aware not in (False, True, "factored"):
        raise ValueError(
            "`optimizer_aware` should be True, False or 'factored'. Received: "
            f"{optimizer_aware!r}."
        )


@dataclasses.dataclass(frozen=True)
class _Sum:
    """The sum of all queries, as a single one."""

    queries: Queries

    @property
    def ids(self) -> np.ndarray:
        return np.array(["sum"])
