"""Queries, and the compiled steps that take them.

Synopsis:

    queries = Queries(tuple(batches), engine.steps_like(batches[0]))
    queries.factors(visit)
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.visits import Visit
from keras_tracin.gradients import factors as algebra


@dataclasses.dataclass(frozen=True)
class Steps:
    """Compiled steps for training examples, and for one kind of queries."""

    train: GradientFunctions
    query: GradientFunctions


@dataclasses.dataclass(frozen=True)
class Queries:
    """A block of queries, and the steps that take them.

    Attributes:
        batches: the queries.
        steps: the compiled steps for them and for training examples.
        held: bytes that are held for each query, if not its factors.
        others: as many other queries, by whose difference from these lengths
            are measured.
    """

    batches: tuple[Batch, ...]
    steps: Steps
    held: int | None = None
    others: Queries | None = None

    @property
    def ids(self) -> np.ndarray:
        """The queries' ids, in reading order."""
        return np.concatenate([batch.ids for batch in self.batches])

    def factors(self, visit: Visit) -> tuple:
        """The compact factors of all the queries, layer by layer.

        Args:
            visit: the checkpoint whose weights the model has.
        """
        step, position = self.steps.query.query_factors, visit.sketched_at
        return algebra.concat(
            [step(batch.data, *position) for batch in self.batches]
        )

    def rows(self) -> tf.Tensor:
        """The whole gradients of all the queries, `[m, p]`."""
        step, rate = self.steps.query.rows, np.float32(1)
        rows = [step(batch.data, rate) for batch in self.batches]
        return tf.concat(rows, axis=0) if len(rows) > 1 else rows.pop()
