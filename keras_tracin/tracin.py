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

import dataclasses
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.attribution import (
    Attribution,
    SelfInfluence,
    TopK,
    TopKMerger,
)
from keras_tracin.datasets import Batch, open_examples
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import find_sites
from keras_tracin.gradients.functions import (
    GradientFunctions,
    footprint,
    kind_of,
)
from keras_tracin.losses import per_example_loss, query_value
from keras_tracin.runs import Checkpoint, TrainingRun
from keras_tracin.sweep import (
    Plan,
    Progress,
    default_memory_limit,
    in_chunks,
    make_plan,
    sweep,
)

_QUERY_BATCH = 128  # queries captured in one step


class TracIn:
    """Influence of training examples by TracIn over checkpoints.

    Example:
        model.fit(train, epochs=10, callbacks=[kt.TracInCheckpoint("runs/a")])
        tracin = kt.TracIn(model, train, "runs/a")
        top = tracin.top_k(test, k=10)
        top.proponents.ids      # [num_test, 10]

    The model runs in inference mode: BatchNormalization uses each
    checkpoint's statistics, Dropout is off. Weight regularisers are part of
    the objective but of no example, and are left out. The model has its own
    weights back after every call, and its optimizer is not touched.

    Args:
        model: the trained model, compiled with its loss.
        train: what `model.fit` took: a batched `tf.data.Dataset` or a tuple
            of arrays, `(x, y)` or `(x, y, sample_weight)`.
        run: a `TrainingRun`, or its directory.
        weights: what a checkpoint counts: `"mean"`, the mean learning rate
            applied since the one before, or `"sum"`, the sum of those rates,
            which is right where intervals differ in length. A checkpoint
            whose rate is zero is skipped with a warning.
        loss: used in place of the compiled loss; anything `compile` takes.
        query_loss: what a query's influence is measured on: `"loss"` (the
            default), `"logit"` or `"margin"` of the label, or a function
            `(y_true, y_pred) -> [n]` that is lower where the prediction is
            better. Positive scores are proponents in each case.
        class_weight: the `class_weight` given to `fit`.
        layers: names or layers to restrict the gradients to; by default all
            trainable variables count.
        memory_limit: bytes the computation may use, beside the data; half of
            what is free by default.

    Raises:
        ValueError: if the model is not compiled and no `loss` is given, if
            `layers` names no layer with weights, or if data, run and model
            do not fit one another.
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
        memory_limit: int | None = None,
    ):
        if not isinstance(run, TrainingRun):
            run = TrainingRun(run)
        self._model = model
        self._train = open_examples(train, "train")
        self._rates = _rates(run, weights)
        self._layers = layers
        self._memory_limit = memory_limit
        self._strict = loss is None
        self._loss = per_example_loss(model, loss, class_weight)
        self._query_value = query_value(model, query_loss or "loss", loss)
        self._same_loss = query_loss in (None, "loss") and not class_weight
        self._like = self._train.first(1)
        self._functions: dict[str, _Functions] = {}
        _build(model, self._like)
        find_sites(model, layers)  # refuses bad `layers=` before long work

    def influence(
        self, test: Any, *, aggregate: bool = False, verbose: int = 1
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            aggregate: sum over the queries: a single row with query id "sum",
                at the cost of a single query.
            verbose: 0 for silence; else work of more than two seconds is
                announced and has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]` (or
            `[1, num_train]`), float32. Use them to rank and to compare: with
            `weights="mean"` a checkpoint stands for one step on the example
            alone, not for its share of the batches it was in.

        Raises:
            ValueError: if a gradient is NaN or infinite, naming checkpoint,
                layer and ids, or if `test` does not fit the model.
        """
        if aggregate:
            return self._influence_on_sum(test, verbose)
        rows = []
        for queries in self._blocks(test):
            columns = _Columns()
            self._score(queries, columns.add, verbose)
            rows.append((queries.ids, columns.scores))
        query_ids, scores = map(np.concatenate, zip(*rows, strict=True))
        return Attribution(scores, query_ids, columns.ids)

    def top_k(self, test: Any, k: int = 10, *, verbose: int = 1) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        The same as `influence(test).top_k(k)` without ever holding all the
        scores: memory does not grow with the number of training examples.

        Args:
            test: the queries, in the same form as `train`.
            k: how many on each side.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        found = []
        for queries in self._blocks(test):
            merger = TopKMerger(queries.ids, k, self._train.size)
            self._score(queries, merger.add, verbose)
            found.append(merger.result())
        return TopK.concat(found)

    def self_influence(self, *, verbose: int = 1) -> SelfInfluence:
        """Each training example's influence on itself, Σ_k η_k ‖∇ℓ(w_k, z)‖².

        Large for examples that the rest of the data does not explain: rare
        ones and wrongly labelled ones. `query_loss` plays no part.

        Args:
            verbose: 0 for silence.
        """
        functions = self._functions_like(self._like).train
        columns = _Columns()
        step = functions.squared_norms
        self._sweep(step, None, lambda: None, columns.add, verbose)
        return SelfInfluence(scores=columns.scores, ids=columns.ids)

    def plan(self, test: Any = None) -> Plan:
        """What scoring `test` will take; without it, self-influence.

        Print it for examples, checkpoints and estimated memory.
        """
        if test is None:
            functions = self._functions_like(self._like).train
            return self._plan(functions.squared_norms, None)
        queries = next(self._blocks(test))
        return self._plan(queries.functions.train.products, queries)

    def _influence_on_sum(self, test: Any, verbose: int) -> Attribution:
        """One row: every query's gradients are summed before they meet any."""
        examples = open_examples(test, "test")
        functions = self._functions_like(examples.first(1))
        batches = tuple(examples.batches(_QUERY_BATCH))
        queries = _Queries(batches, functions)

        def sum_up():
            totals = [functions.query.totals(b.data) for b in batches]
            return tf.nest.map_structure(
                lambda *parts: tf.add_n(parts), *totals
            )

        columns = _Columns()
        contractions = functions.train.contractions
        self._sweep(contractions, queries, sum_up, columns.add, verbose)
        return Attribution(columns.scores, np.array(["sum"]), columns.ids)

    def _score(self, queries: _Queries, consume, verbose: int) -> None:
        """Streams the scores of one block of queries into `consume`."""
        query = queries.functions.query

        def factors():
            found = [query.captured(b.data).factors for b in queries.batches]
            return algebra.concat(found)

        products = queries.functions.train.products
        self._sweep(products, queries, factors, consume, verbose)

    def _sweep(self, function, queries, prepare, consume, verbose) -> None:
        """Runs a compiled step over all checkpoints and training batches."""

        def step(checkpoint: Checkpoint, batch: Batch, prepared) -> np.ndarray:
            extra = () if prepared is None else (prepared,)
            rate = np.float32(self._rates[checkpoint])
            found = function(batch.data, *extra, rate).numpy()
            if not np.isfinite(found).all():
                self._raise_not_finite(checkpoint, batch, queries)
            return found

        plan = self._plan(function, queries)
        sweep(
            self._model,
            list(self._rates),
            self._train,
            plan,
            prepare=prepare,
            step=step,
            consume=consume,
            progress=Progress(plan, verbose),
        )

    def _plan(self, function, queries: _Queries | None) -> Plan:
        return make_plan(
            self._train,
            num_queries=0 if queries is None else len(queries.ids),
            num_checkpoints=len(self._rates),
            footprint=footprint(function),
            bytes_per_query=(
                0 if queries is None else queries.functions.query.factor_bytes
            ),
            memory_limit=self._limit(),
        )

    def _limit(self) -> int:
        return self._memory_limit or default_memory_limit()

    def _blocks(self, test: Any) -> Iterator[_Queries]:
        """Queries in blocks whose factors take no more than their share."""
        examples = open_examples(test, "test")
        functions = self._functions_like(examples.first(1))
        # Twice the factors exist for a moment, while batches are joined.
        room = self._limit() // (8 * max(1, functions.query.factor_bytes))
        batches = examples.batches(max(1, min(room, _QUERY_BATCH)))
        for block in in_chunks(batches, room):
            yield _Queries(tuple(block), functions)

    def _functions_like(self, batch: Batch) -> _Functions:
        """The compiled steps for queries of the same kind as `batch`."""
        kind = kind_of(batch.data)
        if kind not in self._functions:

            def functions(loss, like, queries=None):
                return GradientFunctions(
                    self._model,
                    loss,
                    like.data,
                    self._layers,
                    queries=queries,
                    strict=self._strict,
                )

            query = functions(self._query_value, batch)
            same = self._same_loss and kind == kind_of(self._like.data)
            train = query if same else functions(self._loss, self._like, query)
            self._functions[kind] = _Functions(train, query)
        return self._functions[kind]

    def _raise_not_finite(self, checkpoint, batch, queries) -> NoReturn:
        """Finds the gradient that is NaN or infinite and names it."""
        train = self._functions_like(self._like).train
        suspects = [("training", batch, train)]
        if queries is not None:
            suspects = [
                ("query", block, queries.functions.query)
                for block in queries.batches
            ] + [("training", batch, queries.functions.train)]
        for role, block, functions in suspects:
            found = functions.first_not_finite(block.data)
            if found is not None:
                layer, rows = found
                raise ValueError(
                    f"The gradients of {role} examples with ids "
                    f"{block.ids[rows].tolist()} are NaN or infinite in layer "
                    f"'{layer}' at {_named(checkpoint)}. Look for NaN in these "
                    "examples' inputs and labels, or choose checkpoints from "
                    "before the loss diverged."
                )
        raise ValueError(
            f"Scores overflow float32 at {_named(checkpoint)}, although all "
            "gradients are finite. Choose checkpoints from before the loss "
            "diverged, or scale the loss down."
        )


@dataclasses.dataclass(frozen=True)
class _Functions:
    """Compiled steps for training examples, and for one kind of queries."""

    train: GradientFunctions
    query: GradientFunctions


@dataclasses.dataclass(frozen=True)
class _Queries:
    """A block of queries, and the steps that take them."""

    batches: tuple[Batch, ...]
    functions: _Functions

    @property
    def ids(self) -> np.ndarray:
        """The queries' ids, in reading order."""
        return np.concatenate([batch.ids for batch in self.batches])


class _Columns:
    """Collects the chunks that a sweep hands out."""

    def __init__(self):
        self._ids: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """Takes `ids [c]` and `scores [..., c]`."""
        self._ids.append(ids)
        self._scores.append(scores)

    @property
    def ids(self) -> np.ndarray:
        """All ids, in the order they came."""
        return np.concatenate(self._ids)

    @property
    def scores(self) -> np.ndarray:
        """All scores, `[..., n]`; a single chunk is not copied."""
        if len(self._scores) == 1:
            return self._scores[0]
        return np.concatenate(self._scores, axis=-1)


def _rates(run: TrainingRun, weights: str) -> dict[Checkpoint, float]:
    """The checkpoints that count, and what each counts."""
    if weights not in ("mean", "sum"):
        raise ValueError(
            "`weights` should be 'mean' or 'sum' of the learning rates. "
            f"Received: {weights!r}."
        )
    rates = {}
    for checkpoint in run:
        rate = checkpoint.learning_rate
        if weights == "sum":
            if checkpoint.learning_rate_sum is None:
                raise ValueError(
                    "`weights='sum'` needs the learning rate of every step. "
                    "Received a run adopted from weight files, which knows "
                    "one rate for each; use `weights='mean'`."
                )
            rate = checkpoint.learning_rate_sum
        if rate == 0:
            warnings.warn(
                f"Skipping {_named(checkpoint)}: its learning rate is 0, as "
                "in a warm-up, so it moved nothing.",
                stacklevel=3,
            )
            continue
        rates[checkpoint] = rate
    if not rates:
        raise ValueError(
            "No checkpoint of the run has a learning rate above zero. "
            f"Received: {run!r}. Train for at least one epoch with "
            "`TracInCheckpoint` among the callbacks."
        )
    return rates


def _named(checkpoint: Checkpoint) -> str:
    return f"checkpoint '{checkpoint.path}' (epoch {checkpoint.epoch})"


def _build(model: keras.Model, batch: Batch) -> None:
    """Makes the variables of a model that has not seen data yet."""
    if not model.built:
        model(batch.x, training=False)
