"""Queries at the end of a training, and their way back through its steps.

Synopsis:

    backward = Backward(replay, steps, value)
    backward.values(replay.last, batch)               # [m]
    adjoint = backward.adjoint(replay.last, batch)
    backward.scores(batch.ids, adjoint, len(held), progress)  # [m, n]
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.planning import Plan, in_words
from keras_tracin.engine.progress import Progress
from keras_tracin.losses.per_example import PerExampleLoss
from keras_tracin.methods.unrolled.batches import Steps
from keras_tracin.methods.unrolled.replay import Replay
from keras_tracin.methods.unrolled.training import Adjoint, State


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


class Backward:
    """Carries queries back through a replayed training.

    Args:
        replay: the training.
        steps: its steps.
        value: what queries measure, `(y, y_pred, sample_weight) -> [m]`.
    """

    def __init__(self, replay: Replay, steps: Steps, value: PerExampleLoss):
        self._replay, self._steps, self._value = replay, steps, value

    def values(self, state: State, batch: Batch) -> np.ndarray:
        """What `m` queries measure with a state's weights, `[m]`."""
        return np.asarray(self._compiled_values(state, batch.data))

    def adjoint(self, state: State, batch: Batch) -> Adjoint:
        """The derivatives of `m` queries' values by the last state."""
        _, adjoint = self._compiled_adjoint(state, batch.data)
        return adjoint

    def scores(
        self, ids: np.ndarray, adjoint: Adjoint, count: int, progress: Progress
    ) -> np.ndarray:
        """The scores `[m, n]` of queries with this adjoint of the last state.

        Args:
            ids: the queries' ids, `[m]`.
            adjoint: as `adjoint` returns it.
            count: n, the number of training examples.
            progress: told of every step.

        Raises:
            ValueError: if derivatives overflow, naming the queries.
        """
        columns = np.zeros((count, len(ids)))
        for number, state in self._replay.backwards():
            adjoint, products = self._replay.training.backward(
                state, *self._replay.inputs(number), adjoint
            )
            np.add.at(columns, self._steps.rows[number], products.numpy().T)
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
        return scores

    def seconds(self, batch: Batch, blocks: int) -> float:
        """An estimate of the time that blocks of queries like one will take.

        The first step is made forwards and backwards, for real.
        """
        replay = self._replay
        start, inputs = replay.start, replay.inputs(0)
        adjoint = self.adjoint(start, batch)
        forwards = _seconds(lambda: replay.advance(0, start))
        backwards = _seconds(
            lambda: replay.training.backward(start, *inputs, adjoint)
        )
        again = 0.0 if replay.holds_all else forwards
        return len(self._steps) * (forwards + blocks * (backwards + again))

    @functools.cached_property
    def _compiled_values(self) -> Callable[[State, Any], tf.Tensor]:
        return self._compile(self._replay.training.values)

    @functools.cached_property
    def _compiled_adjoint(self) -> Callable[[State, Any], Any]:
        return self._compile(self._replay.training.adjoint)

    def _compile(self, function: Callable) -> Any:
        """The compiled function of `(state, data)`."""
        return tf.function(
            functools.partial(function, self._value),
            autograph=False,
            reduce_retracing=True,
        )


def sum_queries(adjoint: Adjoint) -> Adjoint:
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
