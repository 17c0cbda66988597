"""Unrolled influence: the end of training, differentiated by example weights.

    score(z, z') = Σ_{t: z ∈ B_t} η_t b_z ∇ℓ(w_t, z) · λ_{t+1},
    λ_T = ∇ℓ(w_T, z'),  λ_t = (I - η_t H_t) λ_{t+1},

for plain SGD (Hara et al. 2019; Ilyas & Engstrom 2025); with momentum or
Adam, the optimizer's state has an adjoint as well. The score is minus the
derivative of the query's loss after the last step by the weight of z in the
losses of its batches. To first order that loss would rise by the score if the
weight were 0, with all batches, their divisors and all randomness unchanged.

TracIn has ∇ℓ(w_t, z') in place of λ_{t+1}: the immediate effect of a step on
the query, not what remains of it when training ends.

Synopsis:

    kt.record_training(model, train, "runs/digits", epochs=10)
    unrolled = kt.UnrolledInfluence(model, train, "runs/digits")
    unrolled.influence(test)                       # Attribution
    unrolled.influence(test, aggregate=True)       # one row for their sum
    unrolled.retrain(test, np.ones(len(x)))        # the queries' real losses
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.data.preprocessing import announce, open_for_model
from keras_tracin.engine import collecting
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.distribution import check_alone, worker_of
from keras_tracin.engine.fingerprint import tolerance as fingerprint_tolerance
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.progress import Progress
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.query_losses import query_value
from keras_tracin.methods.unrolled.queries import (
    Backward,
    UnrolledPlan,
    sum_queries,
)
from keras_tracin.methods.unrolled.recorded import RecordedTraining
from keras_tracin.methods.unrolled.training import Adjoint
from keras_tracin.models.descriptions import describe
from keras_tracin.models.exclusive import exclusively
from keras_tracin.results.attribution import Attribution
from keras_tracin.results.top_k import TopK
from keras_tracin.runs import TrainingRun

_MOST_QUERIES = 128  # carried back together
_COPIES = 6  # of a query's adjoint, while a step is differentiated


class UnrolledInfluence:
    """Influence through the whole of a recorded training, to first order.

    Example:
    ```python
    kt.record_training(model, (x, y), "runs/digits", epochs=10)
    unrolled = kt.UnrolledInfluence(model, (x, y), "runs/digits")
    unrolled.top_k(test, k=10).proponents.ids
    ```

    The first call replays the training from its initial weights, batch by
    batch, and compares the weights with each checkpoint; scores are those of
    the last checkpoint. Each block of queries is then carried back through all
    steps. Training steps are in training mode, with Dropout's seeds replayed,
    and include regularisers and weight decay; queries are in inference mode.
    The derivative is exact up to float32. It describes small changes: where
    ReLU or max-pooling switch once an example is left out, or steps are so long
    that small changes grow, it says less about leaving the example out.

    The training examples are held in memory. The model is not changed, and
    scores do not depend on the weights it has at the time.

    Args:
        model: the model that was trained, compiled as it was then: with SGD
            (momentum, Nesterov), Adam, AdamW, RMSprop or Adagrad, clipping and
            weight decay included.
        train: the data it was trained on.
        run: the `TrainingRun`, or its directory; a slice ends at its last
            checkpoint. Runs of `record_training`, `trace_training` and
            `sketch_training` hold all that is needed.
        batches: for other runs, the examples of each batch: the batch size,
            where batches were read in order, as `fit(..., shuffle=False)`
            does; or the ids of each step's batch. Not needed for a dataset
            that is always read in one order.
        query_loss: as in `TracIn`.
        class_weight: the `class_weight` given to `fit`.
        tolerance: largest allowed distance of replayed weights from the
            recorded ones, as a share of the distance from one checkpoint to
            the next.
        memory_limit: bytes for the states of the training and the queries'
            adjoints; half of what is free by default.

    Raises:
        ValueError: if the optimizer is another, or averages weights or
            accumulates gradients; if the model has BatchNormalization in
            training mode, computes in half precision or was built under
            several replicas; if the run does not record what is needed; or if
            data, run and model do not fit one another.
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
        self._recorded = RecordedTraining(
            model,
            train,
            run,
            batches=batches,
            class_weight=class_weight,
            tolerance=tolerance,
            memory_limit=memory_limit,
        )
        self._model, self._held = model, self._recorded.held
        x = self._held.first(SAMPLE).x
        self._query_loss = query_loss or "loss"
        self._value = query_value(model, self._query_loss, x=x)

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
            aggregate: score the sum of the queries' losses, in one row: it is
                carried back once for all of them.
            directory: where finished blocks of queries are kept, as in
                `TracIn`. Processes that share it wait for the first, which
                does all the work.
            verbose: 0 for silence; else long work has a progress bar.

        Returns:
            An `Attribution` with `scores [num_test, num_train]`, or
            `[1, num_train]` for a sum. Examples that were in no batch have 0.

        Raises:
            ValueError: if the replayed training does not lead to the recorded
                weights, saying where; if adjoints overflow; or if `directory`
                holds parts of another call.
        """
        if aggregate:
            if directory is not None:
                raise ValueError(
                    "`aggregate=True` makes a single row, in the time of one "
                    "query, and keeps no parts of it. Leave out `directory=`."
                )
            return self._influence_on_sum(test, verbose)
        parts = self._open_parts(directory, "influence", test)
        return collecting.influence(
            self._blocks(test, parts), self._stream(verbose), parts
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
            k: number of training examples on each side.
            directory: as in `influence`.
            verbose: 0 for silence.

        Raises:
            ValueError: if `k` is below 1 or above the number of training
                examples; and as `influence`.
        """
        parts = self._open_parts(directory, "top_k", test, k=k)
        return collecting.top_k(
            self._blocks(test, parts),
            self._stream(verbose),
            k,
            len(self._held),
            parts,
        )

    def self_influence(
        self,
        *,
        directory: str | os.PathLike | None = None,
        verbose: int = 1,
    ) -> NoReturn:
        """Refused: every training example would be carried back as a query.

        Args:
            directory: plays no part.
            verbose: plays no part.

        Raises:
            NotImplementedError: always; it says what to do.
        """
        raise NotImplementedError(
            "Unrolled self-influence carries each of the "
            f"{len(self._held)} examples back through the whole training. Use "
            "`TracIn` for self-influence, or `influence(some)` for the "
            "examples in question."
        )

    @exclusively
    def plan(self, test: Any = None) -> UnrolledPlan:
        """What scoring `test` will take: steps, memory and time.

        To estimate the time, one step is made forwards and backwards.

        Args:
            test: the queries.

        Raises:
            NotImplementedError: without `test`, as `self_influence`.
            ValueError: if `test` does not fit the model.
        """
        if test is None:
            self.self_influence()
        block = next(self._blocks(test))
        total = open_for_model(self._model, test, "test").size or len(block)
        blocks = math.ceil(total / len(block))
        plan = self._plan(len(block))
        seconds = self._backward.seconds(block, blocks)
        return dataclasses.replace(
            plan, num_queries=total, num_blocks=blocks, seconds=seconds
        )

    @exclusively
    def retrain(self, test: Any, counts: Any) -> np.ndarray:
        """The queries' losses after a training with other example weights.

        Batches, their divisors, rates and randomness stay as they were, so
        that scores predict the losses to first order:

            retrain(test, counts) ≈ retrain(test, ones) + scores · (1 - counts).

        Args:
            test: the queries.
            counts: `[n]`, or `[s, n]` for `s` trainings: the factor of each
                example's loss, in reading order; 0 leaves an example out.

        Returns:
            `[m]`, or `[s, m]`: each query's `query_loss`.

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
        values = []
        for row in rows:
            state = self._recorded.replay.end(row)
            values.append(
                np.concatenate(
                    [self._backward.values(state, block) for block in queries]
                )
            )
        return np.stack(values) if np.ndim(counts) == 2 else values[0]

    @property
    @exclusively
    def replay_error(self) -> float:
        """The largest distance of replayed from recorded weights.

        As a share of the distance that training covered since the checkpoint
        before; 0 if the replay is the same to the bit.

        Raises:
            ValueError: if it is above `tolerance`.
        """
        return self._recorded.replay_error

    def describe(self) -> dict[str, Any]:
        """The options on which scores depend, as JSON."""
        return {
            "method": "UnrolledInfluence",
            "query_loss": describe(self._query_loss),
            **self._recorded.describe(),
        }

    def __repr__(self) -> str:
        return (
            f"UnrolledInfluence({self._model.name!r}, {len(self._held):,} "
            f"training examples, {len(self._recorded.steps):,} steps)"
        )

    def _influence_on_sum(self, test: Any, verbose: int) -> Attribution:
        """One row: the sum of the queries' adjoints is carried back."""
        total: Any = None
        for block in self._blocks(test):
            summed = sum_queries(self._adjoint(block))
            total = (
                summed
                if total is None
                else tf.nest.map_structure(tf.add, total, summed)
            )
        ids = np.array(["sum"])
        scores = self._carry_back(ids, total, verbose)
        return Attribution(scores, ids, self._held.ids)

    def _open_parts(
        self,
        directory: str | os.PathLike | None,
        call: str,
        test: Any,
        **options: Any,
    ) -> Parts | None:
        """The parts of a call on disk, None without a directory."""
        if directory is None:
            check_alone(None)
            return None
        job = {
            **self.describe(),
            "call": call,
            "training": self._recorded.digest,
            "test": content_digest(
                open_for_model(self._model, test, "test").batches(_MOST_QUERIES)
            ),
            **options,
        }
        parts = Parts.open(directory, job, worker_of(None))
        parts.compare(self._numbers(), fingerprint_tolerance(self._model))
        return parts

    def _numbers(self) -> Numbers:
        """Numbers that the losses, the model and the optimizer compute."""
        replay, first = self._recorded.replay, self._held.first(32)
        moved = replay.advance(0, replay.start)
        pairs = zip(moved.weights, replay.start.weights, strict=True)
        return {
            "ids": first.ids,
            "query losses": self._backward.values(replay.start, first),
            "steps": np.array([float(tf.norm(a - b)) for a, b in pairs]),
        }

    @functools.cached_property
    def _backward(self) -> Backward:
        recorded = self._recorded
        return Backward(recorded.replay, recorded.steps, self._value)

    def _blocks(self, test: Any, parts: Parts | None = None) -> Iterator[Batch]:
        """Queries in blocks that are carried back together."""
        recorded = self._recorded
        per_query = _COPIES * recorded.bytes_of_state
        room = recorded.memory_limit // (2 * per_query)
        size = min(max(1, room), _MOST_QUERIES)
        if parts is not None:
            size = parts.agree("block", size)
        queries = open_for_model(self._model, test, "test")
        check_fits(self._model, queries.first(1), "test")
        return queries.batches(size)

    def _adjoint(self, block: Batch) -> Adjoint:
        """The derivatives of queries at the end of the checked replay."""
        recorded = self._recorded
        assert recorded.replay_error >= 0  # makes the last state
        return self._backward.adjoint(recorded.replay.last, block)

    def _stream(self, verbose: int) -> collecting.Stream[Batch]:
        """Streams the scores of one block of queries, as a single chunk."""
        ids = self._held.ids
        chunk = Chunk(0, 0, (Batch(ids, None),))

        def stream(block: Batch, sink: Sink) -> None:
            if sink.wants(chunk):
                adjoint = self._adjoint(block)
                sink.add(ids, self._carry_back(block.ids, adjoint, verbose))

        return stream

    def _carry_back(
        self, ids: np.ndarray, adjoint: Adjoint, verbose: int
    ) -> np.ndarray:
        """The scores `[m, n]` of queries with this adjoint of the end."""
        if verbose:
            announce(self._model, self._recorded.examples)
        progress = Progress(self._plan(len(ids)), verbose, "Unrolled influence")
        scores = self._backward.scores(ids, adjoint, len(self._held), progress)
        dtype = self._model.trainable_variables[0].dtype
        wide = np.float64 if dtype == "float64" else np.float32
        return np.ascontiguousarray(scores, wide)

    def _plan(self, num_queries: int) -> UnrolledPlan:
        """The plan of one block of queries."""
        recorded = self._recorded
        steps, size = len(recorded.steps), len(recorded.held)
        held = min(steps, recorded.states_held)
        states = held + _COPIES * num_queries
        return UnrolledPlan(
            num_train=size,
            num_queries=num_queries,
            num_checkpoints=steps,
            batch_size=size,
            chunk=size,
            memory=states * recorded.bytes_of_state,
        )
