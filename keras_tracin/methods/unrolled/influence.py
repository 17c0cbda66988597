"""Unrolled influence: training's end, differentiated by each example's weight.

    score(z, z') = Σ_{t: z ∈ B_t} η_t b_z ∇ℓ(w_t, z) · λ_{t+1},
    λ_T = ∇ℓ(w_T, z'),  λ_t = (I - η_t H_t) λ_{t+1},

for plain SGD (Hara et al. 2019; Ilyas & Engstrom 2025); with momentum or
Adam, the optimizer's state has an adjoint as well. It is minus the derivative
of the query's loss after the last step by what z counts in the loss of its
batches: to first order, by how much that loss would rise had z counted nothing,
all batches, their divisors and all randomness as they were.

TracIn has ∇ℓ(w_t, z') in place of λ_{t+1}: what a step does to the query at
once, not what is left of it when training ends.

Synopsis:

    kt.record_training(model, train, "runs/digits", epochs=10)
    unrolled = kt.UnrolledInfluence(model, train, "runs/digits")
    unrolled.influence(test)                       # Attribution
    unrolled.influence(test, aggregate=True)       # one row for their sum
    unrolled.retrain(test, counts)                 # what really happens
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.examples import Batch
from keras_tracin.data.preprocessing import announce, open_for_model
from keras_tracin.engine import collecting
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.execution import default_memory_limit
from keras_tracin.engine.progress import Progress
from keras_tracin.engine.steps import batch_spec
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.query_losses import query_value
from keras_tracin.methods.unrolled.batches import Held, training_steps
from keras_tracin.methods.unrolled.replay import Replay
from keras_tracin.methods.unrolled.training import (
    Adjoint,
    State,
    Training,
    check_can_be_unrolled,
)
from keras_tracin.methods.unrolled.updates import Update
from keras_tracin.models.exclusive import exclusively
from keras_tracin.results.attribution import Attribution, TopK
from keras_tracin.runs import (
    TrainingRun,
    check_checkpoint,
    initial_optimizer,
    run_weights,
)
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.seeds import seed_variables

_MOST_QUERIES = 128  # carried back together
_COPIES = 6  # of a query's adjoint while a step is differentiated
# Examples × variables of a batch up to which queries are taken side by side.
_SIDE_BY_SIDE = 2**23


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is announced of long work."""

    steps: int
    num_queries: int

    def __str__(self) -> str:
        return f"{self.steps:,} steps back for {self.num_queries:,} queries"


class UnrolledInfluence:
    """Influence through the whole of a recorded training, to first order.

    Example:
    ```python
    kt.record_training(model, (x, y), "runs/digits", epochs=10)
    unrolled = kt.UnrolledInfluence(model, (x, y), "runs/digits")
    unrolled.top_k(test, k=10).proponents.ids
    ```

    The training is made again from the weights it began with, batch by batch,
    and compared with the checkpoints on the way; scores are of its last
    checkpoint. Each block of queries is then carried back through all steps.
    Gradients are of training mode, with Dropout's seeds replayed; regularisers
    and weight decay count; queries are in inference mode. The derivative is
    exact, but of float32, and of a training without kinks: where ReLU or
    max-pooling decide otherwise once an example is left out, or steps are so
    long that small changes grow, it says less about such a change.

    The training examples are held in memory. The model is not changed.

    Args:
        model: the model that was trained, compiled as it was then: with SGD
            (momentum, Nesterov), Adam, AdamW, RMSprop or Adagrad, clipping and
            weight decay included.
        train: what it was trained on.
        run: the `TrainingRun`, or its directory; a slice ends at its last
            checkpoint. Runs of `record_training`, `trace_training` and
            `sketch_training` hold all that is needed.
        batches: for other runs, which examples were in which batch: a number,
            where batches of that size were read in order, as
            `fit(..., shuffle=False)` does; or the ids of each step's batch. It
            need not be given for a dataset that is always read in one order.
        query_loss: as in `TracIn`.
        class_weight: the one that `fit` was given.
        tolerance: how far replayed weights may be from the recorded ones, as a
            part of the way from one checkpoint to the next.
        memory_limit: bytes for the states of the training and the queries'
            adjoints; half of what is free by default.

    Raises:
        ValueError: if the optimizer is another, or averages weights or
            accumulates gradients; if the model has BatchNormalization in
            training mode, computes in half precision or was built under
            several replicas; if the run does not tell what is needed, or data,
            run and model do not fit one another.
    """

    @exclusively
    def __init__(
        self,
        model: keras.Model,
        train: Any,
        run: TrainingRun | str | os.PathLike,
        *,
        batches: Any = None,
        query_loss: Any = None,
        class_weight: Mapping[int, float] | None = None,
        tolerance: float = 1e-3,
        memory_limit: int | None = None,
    ):
        check_can_be_unrolled(model)
        self._update = Update(model.optimizer, model.trainable_variables)
        self._run = run if isinstance(run, TrainingRun) else TrainingRun(run)
        _check_run(self._run)
        check_checkpoint(model, self._run[-1])
        self._model = model
        examples = open_for_model(model, train, "train")
        self._examples = examples
        self._held = Held.of(examples)
        self._steps = training_steps(self._run, train, self._held, batches)
        check_fits(model, self._held.first(4), "train")
        x = self._held.first(SAMPLE).x
        self._value = query_value(model, query_loss or "loss", x=x)
        self._class_weight = class_weight
        self._tolerance = tolerance
        self._memory_limit = memory_limit

    @exclusively
    def influence(
        self, test: Any, *, aggregate: bool = False, verbose: int = 1
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as `train`.
            aggregate: score the sum of the queries' losses, in one row: one
                way back for all of them.
            verbose: 0 for silence; else long work has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`, or
            `[1, num_train]` for a sum. Examples that were in no batch have 0.

        Raises:
            ValueError: if the replayed training does not lead to the recorded
                weights, saying where; or if adjoints overflow.
        """
        stream = self._stream(verbose)
        if not aggregate:
            return collecting.influence(self._blocks(test), stream)
        total = None
        for batch in self._blocks(test):
            _, adjoint = self._adjoint(batch)
            summed = tf.nest.map_structure(
                lambda one: tf.reduce_sum(one, axis=0, keepdims=True), adjoint
            )
            total = summed if total is None else _sum(total, summed)
        assert total is not None
        ids = np.array(["sum"])
        scores = self._carried_back(ids, total, verbose)
        return Attribution(scores, ids, self._held.ids)

    @exclusively
    def top_k(self, test: Any, k: int = 10, *, verbose: int = 1) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        Args:
            test: the queries, in the same form as `train`.
            k: how many on each side.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        return collecting.top_k(
            self._blocks(test), self._stream(verbose), k, len(self._held)
        )

    def self_influence(self) -> NoReturn:
        """Refused: it would take one way back for every training example.

        Raises:
            NotImplementedError: always; it says what to do.
        """
        raise NotImplementedError(
            "Unrolled self-influence takes a way back through the training for "
            f"each of the {len(self._held)} examples. Use TracIn for it, or "
            "take `influence(some)` of the examples in question."
        )

    @exclusively
    def retrain(self, test: Any, counts: Any) -> np.ndarray:
        """The queries' losses, had the examples counted otherwise in training.

        Batches, their divisors, rates and randomness stay as they were: what
        the scores predict to first order,

            retrain(test, counts) ≈ retrain(test, ones) + scores · (1 - counts).

        Args:
            test: the queries.
            counts: `[n]`, or `[s, n]` for `s` trainings: what the loss of each
                example, in reading order, is multiplied by; 0 leaves it out.

        Returns:
            `[m]`, or `[s, m]`; what `query_loss` says of each query.

        Raises:
            ValueError: if `counts` has another shape.
        """
        rows = np.atleast_2d(np.asarray(counts, np.float64))
        if rows.ndim != 2 or rows.shape[1] != len(self._held):
            raise ValueError(
                "`counts` should have one number for each training example, "
                f"[{len(self._held)}] or [s, {len(self._held)}]. Received "
                f"shape {np.shape(counts)}."
            )
        opened = open_for_model(self._model, test, "test")
        queries = list(opened.batches(_MOST_QUERIES))
        found = []
        for row in rows:
            state = self._replay.end(row)
            values = [
                np.asarray(self._compiled_values(state, batch.data))
                for batch in queries
            ]
            found.append(np.concatenate(values))
        return np.stack(found) if np.ndim(counts) == 2 else found[0]

    @property
    @exclusively
    def replay_error(self) -> float:
        """How far the replay is from the record, at its worst checkpoint.

        Of the way that training went since the checkpoint before; 0 if it is
        the same to the bit.

        Raises:
            ValueError: if it is above `tolerance`.
        """
        return self._replay_error

    @functools.cached_property
    def _replay_error(self) -> float:
        return self._replay.check(self._model, self._run, self._tolerance)

    @property
    def _limit(self) -> int:
        return self._memory_limit or default_memory_limit()

    @property
    def _state_bytes(self) -> int:
        """Of weights and slots."""
        return sum(
            int(np.prod(v.shape)) * tf.as_dtype(v.dtype).size
            for v in self._model.trainable_variables
        ) * (1 + len(self._update.slots))

    @functools.cached_property
    def _replay(self) -> Replay:
        model = self._model
        optimizer: Any = initial_optimizer(model, self._run)
        assert self._run.initial is not None
        with run_weights(model) as load:
            load(self._run.initial)
            weights, constants = (
                tuple(tf.identity(v.value) for v in variables)
                for variables in (
                    model.trainable_variables,
                    model.non_trainable_weights,
                )
            )
        state = State(weights, self._update.slots_of(optimizer), self._seeds())
        size = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
        largest = max(map(len, self._steps.rows))
        training = Training(
            model,
            self._update,
            batch_spec(self._held.first(1).data),
            state,
            constants,
            self._class_weight,
            side_by_side=largest * size <= _SIDE_BY_SIDE,
        )
        return Replay(
            training,
            self._steps,
            self._held,
            state,
            first=int(keras.ops.convert_to_numpy(optimizer.iterations)),
            room=self._limit // (2 * self._state_bytes),
        )

    def _seeds(self) -> tuple[tf.Tensor, ...]:
        """The states of random numbers before the first step."""
        variables = seed_variables(self._model)
        assert self._run.directory is not None
        recorded = run_manifest.read(self._run.directory)["initial"]
        seeds = recorded.get("seeds", [])
        if len(seeds) != len(variables):
            raise ValueError(
                "The model draws random numbers in training, and the run in "
                f"{self._run.directory} does not say in which state they "
                f"began: received {len(seeds)} states, expected "
                f"{len(variables)}. Record the training with this version."
            )
        return tuple(
            tf.constant(seed, v.dtype, shape=v.shape)
            for seed, v in zip(seeds, variables, strict=True)
        )

    def _blocks(self, test: Any) -> Iterator[Batch]:
        """Queries in blocks that are carried back together."""
        room = self._limit // (2 * _COPIES * self._state_bytes)
        queries = open_for_model(self._model, test, "test")
        check_fits(self._model, queries.first(1), "test")
        return queries.batches(min(max(1, room), _MOST_QUERIES))

    def _adjoint(self, batch: Batch) -> tuple[tf.Tensor, Adjoint]:
        """Values `[m]` and derivatives of queries at the end of training."""
        assert self._replay_error >= 0  # so that the last state is there
        return self._compiled_adjoint(self._replay.last, batch.data)

    @functools.cached_property
    def _compiled_adjoint(self):
        return self._of_queries(self._replay.training.adjoint)

    @functools.cached_property
    def _compiled_values(self):
        return self._of_queries(self._replay.training.values)

    def _of_queries(self, function):
        """`(state, data)`, compiled."""
        return tf.function(
            functools.partial(function, self._value),
            autograph=False,
            reduce_retracing=True,
        )

    def _stream(self, verbose: int):
        def stream(batch: Batch, sink: Sink) -> None:
            _, adjoint = self._adjoint(batch)
            scores = self._carried_back(batch.ids, adjoint, verbose)
            sink.add(self._held.ids, scores)

        return stream

    def _carried_back(
        self, ids: np.ndarray, adjoint: Adjoint, verbose: int
    ) -> np.ndarray:
        """The scores `[m, n]` of queries with this adjoint of the end."""
        plan = _Plan(len(self._steps), len(ids))
        if verbose:
            announce(self._model, self._examples)
        progress = Progress(plan, verbose, "Unrolled influence")
        columns = np.zeros((len(self._held), len(ids)))
        for number, state in self._replay.backwards():
            adjoint, found = self._replay.training.backward(
                state, *self._replay.inputs(number), adjoint
            )
            np.add.at(columns, self._steps.rows[number], found.numpy().T)
            progress.advance()
        scores = columns.T
        broken = ~np.isfinite(scores).all(axis=1)
        if broken.any():
            raise ValueError(
                "The derivatives of queries with ids "
                f"{ids[broken][:5].tolist()} overflow on their way back "
                f"through {len(self._steps)} steps: training is so unstable "
                "that a small change of the beginning is beyond any bound at "
                "the end. Lower the learning rate, or use a slice of the run "
                "that ends earlier."
            )
        dtype = self._model.trainable_variables[0].dtype
        wide = np.float64 if dtype == "float64" else np.float32
        return np.ascontiguousarray(scores, wide)


def _check_run(run: TrainingRun) -> None:
    if run.initial is None or run.learning_rates is None:
        raise ValueError(
            "Unrolling needs the initial weights and the rate of every step. "
            "Received a run of adopted weight files; record the training with "
            "`kt.record_training` or `kt.TracInCheckpoint`."
        )
    if not len(run):
        raise ValueError(
            f"Unrolling ends at a run's last checkpoint. Received {run!r}."
        )


def _sum(one: Any, other: Any) -> Any:
    return tf.nest.map_structure(tf.add, one, other)
