"""Queries at the end of a training, and their way back through its steps.

Synopsis:

    backward = Backward(recorded, value)
    plan = backward.plan(num_queries=len(batch))
    adjoint = backward.adjoint(batch)
    scores = backward.scores(batch.ids, adjoint, Progress(plan, 1, "Scores"))
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.planning import Plan, in_words
from keras_tracin.engine.progress import Progress
from keras_tracin.losses.per_example import PerExampleLoss
from keras_tracin.methods.unrolled.recorded import RecordedTraining
from keras_tracin.methods.unrolled.training import Adjoint, State

_MOST_QUERIES = 128  # carried back together
_COPIES = 6  # of a query's adjoint, while a step is differentiated
_COMPARED = 32  # training examples, with those of finished parts


@dataclasses.dataclass(frozen=True)
class UnrolledPlan(Plan):
    """The plan of a call of `UnrolledInfluence`.

    Its checkpoints are the states of the training before each of its steps,
    its batches all training examples.
    """

    def __str__(self) -> str:
        work = f"{self.num_checkpoints:,} steps back"
        work += f" for {self.num_queries:,} queries"
        if self.num_blocks > 1:
            work += f" (in {self.num_blocks:,} blocks)"
        costs = [f"about {max(1, round(self.memory / 2**20)):,} MB of memory"]
        if self.seconds is not None:
            costs.append(in_words(self.seconds))
        return ", ".join([work, *costs])


class SummedQueries:
    """All queries as a block of one: the sum of their values.

    Args:
        batches: the queries.
    """

    def __init__(self, batches: Iterator[Batch]):
        self.batches = batches
        self.ids = np.array(["sum"])


class Backward:
    """Carries queries back through a replayed training.

    Args:
        recorded: the training.
        value: measure of a query's influence, in the form of a loss:
            `(y, y_pred, sample_weight) -> [m]`.

    Attributes:
        recorded: the training.
        value: the measure of a query's influence.
    """

    def __init__(self, recorded: RecordedTraining, value: PerExampleLoss):
        self.recorded, self.value = recorded, value

    def within(self, **limits: Any) -> Backward:
        """The same within other limits, as in `Execution.within`."""
        return Backward(self.recorded.within(**limits), self.value)

    @property
    def block_size(self) -> int:
        """Number of queries that are carried back together."""
        per_query = _COPIES * self.recorded.bytes_of_state
        room = self.recorded.memory_limit // (2 * per_query)
        return min(max(1, room), _MOST_QUERIES)

    def plan(self, num_queries: int) -> UnrolledPlan:
        """The plan of one block of queries."""
        recorded = self.recorded
        steps, size = len(recorded.steps), len(recorded.held)
        states = min(steps, recorded.states_held) + _COPIES * num_queries
        return UnrolledPlan(
            num_train=size,
            num_queries=num_queries,
            num_checkpoints=steps,
            batch_size=size,
            chunk=size,
            memory=states * recorded.bytes_of_state,
        )

    def values(self, state: State, batch: Batch) -> np.ndarray:
        """The measures of `m` queries with a state's weights, `[m]`."""
        return np.asarray(self._compiled_values(state, batch.data))

    def adjoint(self, queries: Batch | SummedQueries) -> Adjoint:
        """The derivatives of `m` queries' values by the checked last state.

        Args:
            queries: the queries; summed ones are as a single one.

        Raises:
            ValueError: if the replay does not lead to the recorded weights.
        """
        if isinstance(queries, SummedQueries):
            sums = (_sum(self.adjoint(batch)) for batch in queries.batches)
            add = functools.partial(tf.nest.map_structure, tf.add)
            return functools.reduce(add, sums)
        recorded = self.recorded
        assert recorded.replay_error >= 0  # makes the last state
        return self._adjoint(recorded.replay.last, queries)

    def scores(
        self, ids: np.ndarray, adjoint: Adjoint, progress: Progress
    ) -> np.ndarray:
        """The scores `[m, n]` of queries with this adjoint of the last state.

        Args:
            ids: the queries' ids, `[m]`.
            adjoint: as `adjoint` returns it.
            progress: told of every step.

        Raises:
            ValueError: if derivatives overflow, naming the queries.
        """
        recorded, replay = self.recorded, self.recorded.replay
        columns = np.zeros((len(recorded.held), len(ids)))
        for number, state in replay.backwards():
            adjoint, products = replay.training.backward(
                state, *replay.inputs(number), adjoint
            )
            np.add.at(columns, recorded.steps.rows[number], products.numpy().T)
            progress.advance()
        scores = columns.T
        broken = ~np.isfinite(scores).all(axis=1)
        if broken.any():
            raise ValueError(
                "The derivatives of queries with ids "
                f"{ids[broken][:5].tolist()} overflow on their way back "
                f"through {len(recorded.steps)} steps: training is so unstable "
                "that a small change of the beginning is beyond any bound at "
                "the end. Lower the learning rate, or use a slice of the run "
                "that ends earlier."
            )
        dtype = recorded.model.trainable_variables[0].dtype
        wide = np.float64 if dtype == "float64" else np.float32
        return np.ascontiguousarray(scores, wide)

    def numbers(self) -> Numbers:
        """Numbers that losses, model and optimizer compute, at the start."""
        replay = self.recorded.replay
        first = self.recorded.held.first(_COMPARED)
        moved = replay.advance(0, replay.start)
        pairs = zip(moved.weights, replay.start.weights, strict=True)
        return {
            "ids": first.ids,
            "query losses": self.values(replay.start, first),
            "steps": np.array([float(tf.norm(a - b)) for a, b in pairs]),
        }

    def seconds(self, batch: Batch, blocks: int) -> float:
        """An estimate of the time that blocks of queries like one will take.

        The first step is made forwards and backwards, for real.
        """
        recorded, replay = self.recorded, self.recorded.replay
        start, inputs = replay.start, replay.inputs(0)
        adjoint = self._adjoint(start, batch)
        forwards = _seconds(lambda: replay.advance(0, start))
        backwards = _seconds(
            lambda: replay.training.backward(start, *inputs, adjoint)
        )
        again = 0.0 if replay.holds_all else forwards
        return len(recorded.steps) * (forwards + blocks * (backwards + again))

    def _adjoint(self, state: State, batch: Batch) -> Adjoint:
        _, adjoint = self._compiled_adjoint(state, batch.data)
        return adjoint

    @functools.cached_property
    def _compiled_values(self) -> Callable[[State, Any], tf.Tensor]:
        return self._compile(self.recorded.replay.training.values)

    @functools.cached_property
    def _compiled_adjoint(self) -> Callable[[State, Any], Any]:
        return self._compile(self.recorded.replay.training.adjoint)

    def _compile(self, function: Callable) -> Any:
        """The compiled function of `(state, data)`."""
        return tf.function(
            functools.partial(function, self.value),
            autograph=False,
            reduce_retracing=True,
        )


def _sum(adjoint: Adjoint) -> Adjoint:
    """The adjoint of the sum of `m` queries, as that of one."""
    return tf.nest.map_structure(
        lambda rows: tf.reduce_sum(rows, axis=0, keepdims=True), adjoint
    )


def _seconds(work: Callable[[], Any]) -> float:
    """The time that work takes, once it has been traced."""
    work()
    start = time.perf_counter()
    tf.nest.map_structure(np.asarray, work())
    return time.perf_counter() - start
