"""TracIn's passes beside the plain ones: optimizer-aware, and over sums.

Synopsis:

    aware = Preconditioner(model)
    aware_products_pass("TracIn", queries, checkpoints, aware)
    aware_norms_pass("TracIn", engine.train_steps, checkpoints, aware)
    sum_pass("TracIn", queries, checkpoints)      # one row for all queries
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.passes import Pass
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.gradients import flat


def aware_products_pass(
    title: str, queries: Queries, weights: Weights, aware: Preconditioner
) -> Pass:
    """Products of gradients with D times the queries' whole gradients.

    Args:
        title: the method's name.
        queries: a block of queries.
        weights: the checkpoints to sum over.
        aware: the diagonals D.
    """
    query, rate = queries.steps.query, np.float32(1)

    def weigh(visit: Visit):
        rows = [query.rows(batch.data, rate) for batch in queries.batches]
        # Nothing here may keep rows that were cut up: they are large.
        rows = tf.concat(rows, axis=0) if len(rows) > 1 else rows.pop()
        parts = list(flat.directions(rows, query.variables))
        del rows
        assert visit.checkpoint is not None
        return aware.weigh(parts, visit.checkpoint, query.variables)

    step = queries.steps.train.along
    return Pass(title, step, weights, queries, prepare=weigh)


def aware_norms_pass(
    title: str,
    steps: GradientFunctions,
    weights: Weights,
    aware: Preconditioner,
) -> Pass:
    """The squared lengths of gradients under D.

    Args:
        title: the method's name.
        steps: the compiled steps for training examples.
        weights: the checkpoints to sum over.
        aware: the diagonals D.
    """
    return Pass(
        title,
        steps.weighted_norms,
        weights,
        prepare=_diagonals(steps, aware),
        held=bytes_of_diagonals(steps.model),
    )


def sum_pass(
    title: str,
    queries: Queries,
    weights: Weights,
    aware: Preconditioner | None = None,
) -> Pass:
    """Products with the sum of the gradients of all queries, as one row.

    Args:
        title: the method's name.
        queries: all queries.
        weights: the checkpoints to sum over.
        aware: the diagonals D, by which the sum is multiplied.
    """
    query = queries.steps.query

    def sum_up(visit: Visit):
        totals = [
            query.totals(batch.data, *visit.sketched_at)
            for batch in queries.batches
        ]
        return tf.nest.map_structure(lambda *parts: tf.add_n(parts), *totals)

    def weigh(visit: Visit):
        assert aware is not None
        return tf.nest.map_structure(
            lambda total, d: total * tf.cast(d, total.dtype),
            sum_up(visit),
            _diagonals(query, aware)(visit),
        )

    step = queries.steps.train.contractions
    prepare = sum_up if aware is None else weigh
    return Pass(title, step, weights, queries, prepare=prepare)


def bytes_of_diagonals(model: keras.Model) -> int:
    """Size of a float32 number for each trainable weight."""
    return 4 * sum(map(flat.size_of, model.trainable_variables))


def _diagonals(steps: GradientFunctions, aware: Preconditioner):
    """Gives D for each variable, at a checkpoint."""

    def prepare(visit: Visit):
        assert visit.checkpoint is not None
        return aware.at(visit.checkpoint, steps.variables)

    return prepare
