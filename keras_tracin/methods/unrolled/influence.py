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
    print(unrolled.smoothness(test))               # how far to trust scores
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

import keras
import numpy as np

from keras_tracin.data.batches import Batch, Examples, content_digest
from keras_tracin.data.preprocessing import announce
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.diagnosis import check_fits
from keras_tracin.engine.fingerprint import tolerance as fingerprint_tolerance
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.padding import open_padded
from keras_tracin.engine.progress import Progress
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.losses.query_losses import query_value
from keras_tracin.methods.attributor import Directory, GroupsOfIds
from keras_tracin.methods.base import Method
from keras_tracin.methods.contrast import about_both
from keras_tracin.methods.unrolled.queries import (
    Backward,
    SummedQueries,
    UnrolledPlan,
)
from keras_tracin.methods.unrolled.recorded import RecordedTraining
from keras_tracin.methods.unrolled.smoothness import (
    Smoothness,
    check_scores,
    random_subsets,
)
from keras_tracin.models.descriptions import describe, describe_loss
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.results import Attribution
from keras_tracin.runs import TrainingRun

_READ = 128  # queries at a time


class UnrolledInfluence(Method):
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

    title = "Unrolled influence"

    @exclusive_access
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
        check_is_model(model)
        self._recorded = RecordedTraining(
            model,
            train,
            run,
            batches=batches,
            class_weight=class_weight,
            tolerance=tolerance,
            memory_limit=memory_limit,
        )
        self.remember_trainable()
        self._options = {
            "class_weight": describe(class_weight or {}),
            "steps": len(self._recorded.steps),
            "tolerance": tolerance,
        }
        x = self._recorded.held.first(SAMPLE).x
        self._query_loss = query_loss or "loss"
        value = query_value(model, self._query_loss, x=x)
        self._backward = Backward(self._recorded, value)

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
            groups: as in `TracIn.influence`.
            contrast: as in `TracIn.influence`.
            query_tokens: as in `TracIn.influence`.
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
                weights, saying where; if adjoints overflow; if `groups` holds
                ids that are not among the training examples; or if `directory`
                holds parts of another call.
        """
        test, contrast = about_both(test, contrast, query_tokens)
        if not aggregate:
            return self._influence(test, contrast, groups, directory, verbose)
        if directory is not None:
            raise ValueError(
                "`aggregate=True` makes a single row, in the time of one "
                "query, and keeps no parts of it. Leave out `directory=`."
            )
        return self._influence(
            test, contrast, groups, None, verbose, aggregate=True
        )

    @exclusive_access
    def plan(self, test: Any = None) -> UnrolledPlan:
        """The steps, memory and time that scoring will take.

        To estimate the time, one step is made forwards and backwards.

        Args:
            test: the queries.

        Raises:
            NotImplementedError: without `test`, as `self_influence`.
            ValueError: if `test` does not fit the model.
        """
        if test is None:
            self._check_self_influence()
        block = next(self._batches(test, Call()))
        examples = self._open(test)
        total = examples.expected_size or len(block)
        blocks = math.ceil(total / len(block))
        return dataclasses.replace(
            self._backward.plan(len(block)),
            num_train=self.num_train,
            num_queries=total,
            num_blocks=blocks,
            seconds=self._backward.seconds(block, blocks),
        )

    @exclusive_access
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
        size = len(self._recorded.held)
        if rows.ndim != 2 or rows.shape[1] != size:
            raise ValueError(
                "`counts` should have one number for each training example, "
                f"[{size}] or [s, {size}]. Received shape {np.shape(counts)}."
            )
        opened = self._open(test)
        queries = list(opened.batches(_READ))
        values = []
        for row in rows:
            state = self._recorded.replay.end(row)
            parts = [self._backward.values(state, block) for block in queries]
            values.append(np.concatenate(parts))
        return np.stack(values) if np.ndim(counts) == 2 else values[0]

    @exclusive_access
    def smoothness(
        self,
        test: Any,
        *,
        share: float = 0.1,
        replays: int = 5,
        seed: int = 0,
        scores: Attribution | None = None,
    ) -> Smoothness:
        """How well scores are expected to rank removals by their real effect.

        A few replays leave out random subsets of the training examples. Any two
        are compared: of the two, do the scores name the one that is worse for
        a query? With few queries or replays the interval is wide.

        Args:
            test: the queries, 20 or more of the kind that is asked about.
            share: the share of the scored training examples that each replay
                leaves out.
            replays: number of replays, each about as long as the training.
            seed: of the random subsets.
            scores: those of the queries, if they are known, which saves the
                time of `influence(test)`; or of any other method.

        Returns:
            A `Smoothness`; `print` it for a sentence.

        Raises:
            ValueError: if `share` makes subsets of no or of all examples, if
                `replays` is below two, or if `scores` are of other queries or
                training examples.
        """
        held = self._recorded.held
        size = self.num_train if scores is None else len(scores.train_ids)
        left_out = random_subsets(size, share, replays, seed)  # [r, n]
        if scores is None:
            scores = self.influence(test, verbose=0)
        columns = held.positions_of(scores.train_ids)
        query_ids = [b.ids for b in self._open(test).batches(_READ)]
        check_scores(scores, np.concatenate(query_ids), columns)
        counts = np.ones((replays, len(held)))
        counts[:, columns] -= left_out
        real = self.retrain(test, counts).T
        return Smoothness.of(scores.scores @ left_out.T, real, share)

    @property
    @exclusive_access
    def replay_error(self) -> float:
        """The largest distance of replayed from recorded weights.

        As a share of the distance that training covered since the checkpoint
        before; 0 if the replay is the same to the bit.

        Raises:
            ValueError: if it is above `tolerance`.
        """
        return self._recorded.replay_error

    @property
    def model(self) -> keras.Model:
        """The model."""
        return self._recorded.model

    @property
    def strategy(self) -> None:
        """None: each batch is replayed on one device."""
        return None

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        if self.selected_ids is not None:
            return len(self.selected_ids)
        return len(self._recorded.held)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {"query_loss": describe(self._query_loss), **self._options}

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        query_loss = describe(self._query_loss)
        return {**describe_loss(self.model), "query_loss": query_loss}

    @property
    def no_self_influence(self) -> str:
        """Why there is no self-influence, and what to use."""
        return (
            "Unrolled self-influence would carry each of the "
            f"{self.num_train} examples back through the whole training. Use "
            "`kt.TracIn` for self-influence, or `influence(some)` for the "
            "examples in question."
        )

    def within(self, **limits: Any) -> Self:
        """The method within another limit of memory; it replays once more.

        Args:
            **limits: as in `keras_tracin.engine.execution.Execution.within`.
                Limits other than `memory_limit` make no difference.
        """
        method = copy.copy(self)
        method._backward = self._backward.within(**limits)
        method._recorded = method._backward.recorded
        return method

    def describe(self) -> dict[str, Any]:
        """The method and its options, as JSON."""
        return {"method": type(self).__name__, **self.settings}

    def job(self, test: Any) -> dict[str, Any]:
        """All that scores depend on, as JSON, for the parts on disk."""
        queries = self._open(test)
        return {
            **self.describe(),
            **self._recorded.describe(),
            "test": content_digest(queries.batches(_READ)),
        }

    def fingerprint(self, test: Any) -> tuple[Numbers, float]:
        """Numbers that scores are made of, and their tolerance."""
        return self._backward.numbers(), fingerprint_tolerance(self.model)

    def blocks(self, test: Any, call: Call) -> Iterator[Batch | SummedQueries]:
        """The queries in blocks that are carried back together."""
        batches = self._batches(test, call)
        if call.options.get("aggregate"):
            return iter([SummedQueries(batches)])
        return batches

    def stream(
        self, queries: Batch | SummedQueries, sink: Sink, call: Call
    ) -> None:
        """Streams the scores of one block of queries, as a single chunk."""
        ids = self._recorded.held.ids
        if not sink.wants(Chunk(0, 0, (Batch(ids, None),))):
            return
        backward = self._backward
        adjoint = backward.adjoint(queries)
        if call.verbose:
            announce(self.model, self._recorded.examples)
        plan = backward.plan(len(queries.ids))
        progress = Progress(plan, call.verbose, self.title)
        sink.add(ids, backward.scores(queries.ids, adjoint, progress))

    def _batches(self, test: Any, call: Call) -> Iterator[Batch]:
        size = call.agree("block", self._backward.block_size)
        queries = self._open(test)
        check_fits(self.model, queries.first(1), "test")
        return queries.batches(size)

    def _open(self, test: Any) -> Examples:
        """The queries, those of several lengths padded to the longest."""
        return open_padded(self.model, test, "test", self._backward.value)
