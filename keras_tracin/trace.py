"""TracInIdeal: how each training step really moved the loss of queries.

At every step of a `model.fit`, the loss of each query is taken before and
after. With `b_i` the weight of example i in its batch's loss (1/b for a mean,
1 for a sum), the first-order estimate of what it did to query z' is

    F_i = η_t b_i ∇ℓ(w_t, z_i) · ∇ℓ(w_t, z'),    positive: the loss went down,

as in the derivation of TracIn. A step's real change is

    D = ℓ(w_t, z') - ℓ(w_{t+1}, z') = A + U.

`A` is what the plain gradient step w̃ = w_t - η_t Σ_i b_i ∇ℓ(w_t, z_i) would
have changed. It is split over the batch: each example has its F_i and an equal
share of the remainder A - Σ_i F_i, the second-order part. `U = D - A` is what
no example of this step caused: momentum carried over, an adaptive optimizer's
scaling, clipping, weight decay and regularisers, BatchNormalization's
statistics. For plain SGD without these, w̃ is w_{t+1} and U is zero. So

    Σ_z score(z, z') + unattributed(z') = the query's total loss drop.

Gradients are those of inference mode. Where training mode differs (Dropout),
the difference is part of the remainder under plain SGD, and of U otherwise.

Synopsis:

    trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=3)
    trace.scores            # [num_queries, num_train]
    trace.unattributed      # [num_queries]
    trace.steps.real        # [num_steps, num_queries]
    trace.correlation()     # of real and first-order change
"""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin._files import written_whole
from keras_tracin.attribution import Attribution
from keras_tracin.datasets import Batch, open_examples
from keras_tracin.example_ids import DatasetWithIds
from keras_tracin.gradients.functions import GradientFunctions
from keras_tracin.losses import per_example_loss
from keras_tracin.runs.steps import next_rate, num_updates


@dataclasses.dataclass(frozen=True)
class StepTable:
    """What every step did; `t` counts the optimizer's updates, `m` queries.

    Attributes:
        learning_rate: `[t]`, as applied.
        real: `[t, m]` losses before the step minus those after.
        first_order: `[t, m]` estimates of that, Σ_i F_i.
        along_step: `[t, m]` estimates from the parameter step that the
            optimizer took, (w_t - w_{t+1}) · ∇ℓ(w_t, z').
        unattributed: `[t, m]` what of `real` no example caused.
        ids: for each step, the ids of its batch.
    """

    learning_rate: np.ndarray
    real: np.ndarray
    first_order: np.ndarray
    along_step: np.ndarray
    unattributed: np.ndarray
    ids: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.learning_rate)


@dataclasses.dataclass(frozen=True)
class TrainingTrace:
    """What `trace_training` found.

    Attributes:
        scores: `[num_queries, num_train]` float64, TracInIdeal.
        unattributed: `[num_queries]` what no example accounts for.
        loss_drop: `[num_queries]` each query's total over all steps.
        query_ids: `[num_queries]`.
        train_ids: `[num_train]` in ascending order.
        steps: the table of steps.
        history: what `model.fit` returned.
    """

    scores: np.ndarray
    unattributed: np.ndarray
    loss_drop: np.ndarray
    query_ids: np.ndarray
    train_ids: np.ndarray
    steps: StepTable
    history: keras.callbacks.History

    def attribution(self) -> Attribution:
        """The scores as every method returns them."""
        return Attribution(
            self.scores.astype(np.float32), self.query_ids, self.train_ids
        )

    def correlation(self, estimate: str = "first_order") -> float:
        """Pearson's, over steps and queries, of real and estimated change.

        Args:
            estimate: `"first_order"` or `"along_step"`.

        Raises:
            ValueError: for another estimate.
        """
        if estimate not in ("first_order", "along_step"):
            raise ValueError(
                "`estimate` should be 'first_order' or 'along_step'. "
                f"Received: {estimate!r}."
            )
        guessed = getattr(self.steps, estimate).ravel()
        return float(np.corrcoef(self.steps.real.ravel(), guessed)[0, 1])


def trace_training(
    model: keras.Model,
    train: Any,
    queries: Any,
    *,
    epochs: int,
    batch_size: int = 32,
    seed: int = 0,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    directory: str | os.PathLike | None = None,
    verbose: str | int = 0,
) -> TrainingTrace:
    """Trains with `model.fit` and traces what each step did to each query.

    The model's optimizer, schedules, `train_step` and callbacks do what they
    do without it, and the same weights result. What a callback changes in the
    weights between two steps counts to neither.

    Example:
        trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=3)
        trace.attribution().top_k(10).proponents.ids

    Args:
        model: a built and compiled model; it is trained.
        train: arrays `(x, y[, sample_weight])`, shuffled here each epoch; or
            a batched dataset with ids (`with_ids`), in its own order.
        queries: a few examples, in either form, that fit memory.
        epochs: how long to train.
        batch_size: for arrays; a dataset has its own.
        seed: of the order of arrays.
        callbacks: as for `model.fit`.
        directory: where each epoch's table of steps is written when the epoch
            ends, as `steps-00001.npz`; nowhere by default.
        verbose: as for `model.fit`.

    Raises:
        TypeError: if `train` is a dataset without ids.
        ValueError: if the model is not built, if a batch does not make one
            update (`steps_per_execution`, gradient accumulation), or if the
            compiled losses are not all means or all sums.
    """
    _check_model(model)
    source = _Source(train, batch_size, seed)
    query = open_examples(queries, "queries").first(_MOST_QUERIES)
    tracer = _Tracer(model, query, source, directory)
    try:
        history = model.fit(
            source.dataset(),
            epochs=epochs,
            callbacks=[tracer, *callbacks],
            verbose=verbose,
            shuffle=False,  # It is already.
        )
    finally:
        model.train_function = None  # Keras makes it anew.
    return tracer.result(history)


_MOST_QUERIES = 100_000


def _check_model(model: keras.Model) -> None:
    if not model.built or model.optimizer is None:
        raise ValueError(
            "trace_training needs the weights before the first step. Received "
            "a model that is not built or not compiled; call it on a batch of "
            "data and compile it first."
        )
    if model.steps_per_execution != 1:
        raise ValueError(
            "trace_training looks at each step. Received a model compiled "
            f"with steps_per_execution={model.steps_per_execution}; compile "
            "it with steps_per_execution=1."
        )
    every = model.optimizer.gradient_accumulation_steps
    if every not in (None, 1):
        raise ValueError(
            "trace_training needs each batch to be one update. Received an "
            f"optimizer with gradient_accumulation_steps={every}; leave it "
            f"out, with a batch size {every} times as large."
        )


def _losses_are_summed(model: keras.Model) -> bool:
    """Whether examples weigh 1 in their batch's loss, instead of 1/b."""
    losses = tf.nest.flatten(model._compile_loss._user_loss)
    known = {"sum": True, "sum_over_batch_size": False}
    reductions = {
        getattr(loss, "reduction", "sum_over_batch_size")
        for loss in losses
        if loss is not None
    }
    if len(reductions) != 1 or not reductions <= known.keys():
        raise ValueError(
            "trace_training needs to know what an example weighs in its "
            "batch's loss: expected losses that are all "
            "'sum_over_batch_size' or all 'sum'. Received reductions "
            f"{sorted(map(str, reductions))}; compile with one of them."
        )
    return known[reductions.pop()]


class _Source:
    """Gives `fit` the batches, and the tracer the same ones with their ids."""

    def __init__(self, train: Any, batch_size: int, seed: int):
        self._examples: Batch | None = None
        if isinstance(train, DatasetWithIds):
            open_examples(train)  # for its checks
            self._dataset, self._spec = train.paired, train.element_spec
        elif isinstance(train, tf.data.Dataset):
            raise TypeError(
                "trace_training needs to know which examples are in a batch. "
                "Received a dataset without ids; attach them first, "
                "`kt.with_ids(data).shuffle(...).batch(...)`."
            )
        else:
            examples = open_examples(train)
            self._examples = examples.first(examples.size or 1)
            first = tf.nest.map_structure(
                tf.convert_to_tensor, self._examples.data
            )
            self._spec = tf.nest.map_structure(
                lambda t: tf.TensorSpec([None, *t.shape[1:]], t.dtype), first
            )
        self._batch_size = batch_size
        self._random = np.random.default_rng(seed)
        self._waiting: collections.deque = collections.deque()

    def dataset(self) -> tf.data.Dataset:
        """Batches; each reading is an epoch with an order of its own."""
        dataset = tf.data.Dataset.from_generator(
            self._epoch, output_signature=self._spec
        )
        if self._examples is None:
            count = int(self._dataset.cardinality())
        else:
            count = -(-len(self._examples) // self._batch_size)
        if count < 0:
            return dataset
        return dataset.apply(tf.data.experimental.assert_cardinality(count))

    def next(self) -> tuple[np.ndarray, Any]:
        """Ids and data of the batch that `fit` trains on now."""
        return self._waiting.popleft()

    def _epoch(self) -> Iterator[Any]:
        # Its own queue: a reading that was cut short leaves nothing behind.
        waiting = self._waiting = collections.deque()
        for ids, element in self._batches():
            waiting.append((ids, element))
            yield element

    def _batches(self) -> Iterator[tuple[np.ndarray, Any]]:
        if self._examples is None:
            for ids, element in self._dataset:
                values = ids.numpy()
                if ids.dtype == tf.string:
                    values = np.array([name.decode() for name in values])
                yield values, element
            return
        order = self._random.permutation(len(self._examples))
        for start in range(0, len(order), self._batch_size):
            ids = order[start : start + self._batch_size]
            yield (
                ids,
                tf.nest.map_structure(
                    lambda leaf, ids=ids: np.asarray(leaf)[ids],
                    self._examples.data,
                ),
            )


class _Tracer(keras.callbacks.Callback):
    """Stands around the train function and notes what it did."""

    def __init__(self, model, query: Batch, source: _Source, directory):
        super().__init__()
        self._query, self._source = query, source
        self._data = tf.nest.map_structure(tf.convert_to_tensor, query.data)
        self._directory = None if directory is None else Path(directory)
        self._loss = per_example_loss(model)
        self._summed = _losses_are_summed(model)
        self._plain = _is_plain(model)
        self._measures = _Measures(model, self._loss, self._data)
        self._scores: dict[Any, np.ndarray] = {}
        self._rows: list[dict[str, Any]] = []
        self._epoch_start = 0

    def on_train_begin(self, logs=None):
        inner = self.model.train_function

        def train_function(iterator):
            return self._step(inner, iterator)

        self.model.train_function = train_function

    def on_epoch_end(self, epoch, logs=None):
        rows, self._epoch_start = (
            self._rows[self._epoch_start :],
            len(self._rows),
        )
        if self._directory is None or not rows:
            return
        table = dataclasses.asdict(_table(rows))
        ids = table.pop("ids")
        path = self._directory / f"steps-{epoch + 1:05d}.npz"
        with written_whole(path) as unfinished, open(unfinished, "wb") as file:
            np.savez(
                file,
                **table,
                ids=np.concatenate(ids),
                batch_sizes=[len(batch) for batch in ids],
            )

    def _step(self, inner, iterator):
        model, measures = self.model, self._measures
        rate, updates = next_rate(model), num_updates(model)
        before = [tf.identity(v.value) for v in model.variables]
        result = inner(iterator)
        # Only now is it sure that the batch was read; `fit` may not even have
        # begun to read the epoch before.
        batch = self._source.next()
        found = measures.at(before, batch[1])
        if num_updates(model) == updates:
            rate = 0.0  # Loss scaling left this step out.
        self._note(batch, rate, before, found)
        return result

    def _note(self, batch, rate, before, found) -> None:
        ids, data = batch
        losses, products = (np.asarray(f, np.float64) for f in found)
        weight = 1.0 if self._summed else 1.0 / len(ids)
        shares = rate * weight * products  # [m, b]
        after = np.asarray(self._measures.losses(), np.float64)
        real, first_order = losses - after, shares.sum(axis=1)
        unattributed, along = np.zeros_like(real), first_order
        if not self._plain:
            stepped, along = self._measures.plain_step(
                before, data, np.float32(rate * weight)
            )
            unattributed = np.asarray(stepped, np.float64) - after
        remainder = real - unattributed - first_order
        for position, example in enumerate(ids.tolist()):
            share = shares[:, position] + remainder / len(ids)
            known = self._scores.get(example)
            self._scores[example] = share if known is None else known + share
        self._rows.append(
            {
                "learning_rate": rate,
                "real": real,
                "first_order": first_order,
                "along_step": np.asarray(along, np.float64),
                "unattributed": unattributed,
                "ids": ids,
            }
        )

    def result(self, history) -> TrainingTrace:
        steps = _table(self._rows)
        train_ids = sorted(self._scores)
        return TrainingTrace(
            scores=np.stack([self._scores[i] for i in train_ids], axis=1),
            unattributed=steps.unattributed.sum(axis=0),
            loss_drop=steps.real.sum(axis=0),
            query_ids=self._query.ids,
            train_ids=np.array(train_ids),
            steps=steps,
            history=history,
        )


def _table(rows: list[dict[str, Any]]) -> StepTable:
    columns = {
        name: np.array([row[name] for row in rows])
        for name in rows[0]
        if name != "ids"
    }
    return StepTable(**columns, ids=[row["ids"] for row in rows])


def _is_plain(model: keras.Model) -> bool:
    """Whether a step is w - η Σ b_i ∇ℓ_i and nothing else."""
    optimizer = model.optimizer
    extras = ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm")
    return (
        type(optimizer) is keras.optimizers.SGD
        and not optimizer.momentum
        and not optimizer.use_ema
        and not any(getattr(optimizer, name, None) for name in extras)
        and not any(getattr(v, "regularizer", None) for v in model.weights)
        and not model.non_trainable_weights
    )


class _Measures:
    """The compiled measurements of one model at one set of queries."""

    def __init__(self, model, loss, query):
        self._model, self._loss, self._query = model, loss, query
        self._queries = GradientFunctions(model, loss, query)
        self._products: Any = None
        self.losses = tf.function(self._losses, autograph=False)
        self._compiled_step = tf.function(self._plain_step, autograph=False)

    def _here(self, data):
        data = tf.nest.map_structure(tf.convert_to_tensor, data)
        if self._products is None:
            steps = GradientFunctions(
                self._model, self._loss, data, queries=self._queries
            )
            one = tf.constant(1.0)

            @tf.function(autograph=False, reduce_retracing=True)
            def both(batch):
                found = self._queries.captured(self._query)
                return found.losses, steps.products(batch, found.factors, one)

            self._products = both
        return self._products(data)

    def at(self, values, data):
        """Losses `[m]` and gradients' products `[m, b]`, at these values."""
        variables = self._model.variables
        present = [tf.identity(v.value) for v in variables]
        try:
            _assign(variables, values)
            return self._here(data)
        finally:
            _assign(variables, present)

    def plain_step(self, before, data, scale):
        """Losses after the plain step, and the estimate along the real one.

        Args:
            before: the values of the model's variables at w_t.
            data: the batch.
            scale: η_t b_i.

        Returns:
            `[m]` losses at w̃, and `[m]` (w_t - w_{t+1}) · ∇ℓ(w_t, z').
        """
        variables = self._model.variables
        present = [tf.identity(v.value) for v in variables]
        data = tf.nest.map_structure(tf.convert_to_tensor, data)
        try:
            _assign(variables, before)
            return self._compiled_step(
                data,
                scale,
                [
                    now - then
                    for v, now, then in zip(
                        variables, present, before, strict=True
                    )
                    if v.trainable
                ],
            )
        finally:
            _assign(variables, present)

    def _plain_step(self, data, scale, moves):
        trained = [v for v in self._model.variables if v.trainable]
        values = [v.value for v in trained]
        with tf.autodiff.ForwardAccumulator(values, moves) as accumulator:
            losses = self._losses()
        along = accumulator.jvp(losses)
        x, y, *weight = data
        with tf.GradientTape() as tape:
            y_pred = self._model(x, training=False)
            total = tf.reduce_sum(
                self._loss(y, y_pred, weight[0] if weight else None)
            )
        for v, gradient in zip(
            trained, tape.gradient(total, values), strict=True
        ):
            if gradient is not None:
                v.assign_sub(tf.cast(scale, gradient.dtype) * gradient)
        return self._losses(), -along

    def _losses(self):
        x, y, *weight = self._query
        y_pred = self._model(x, training=False)
        return self._loss(y, y_pred, weight[0] if weight else None)


def _assign(variables, values) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
