"""Gradients of small variables, as sums over positions.

Scales, offsets and tables of positions have few entries, so their gradients
are held in whole; only scores by position look at the terms of the sum.
"""

from __future__ import annotations

import tensorflow as tf

from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Factors,
    PositionGradients,
)
from keras_tracin.gradients.factors.operations import materialize, split


def summed(factors: Factors) -> Factors:
    """The factors, without terms of sums: `DenseGradients` in their place."""
    if isinstance(factors, PositionGradients):
        return materialize(factors)
    return factors


@materialize.register
def _(factors: PositionGradients) -> DenseGradients:
    if factors.rows is None:
        sums = (tf.reduce_sum(part, axis=1) for part in factors.parts)
        return DenseGradients(tuple(sums))
    first, count = factors.rows
    tables = []
    for part in factors.parts:
        rest = count - first - tf.shape(part)[1]
        table = tf.pad(part, [[0, 0], [first, rest], [0, 0]])
        tables.append(tf.reshape(table, [-1, count * part.shape[-1]]))
    return DenseGradients(tuple(tables))


@split.register
def _(factors: PositionGradients) -> list[Factors]:
    return [
        PositionGradients((part,), factors.rows, factors.calls)
        for part in factors.parts
    ]
