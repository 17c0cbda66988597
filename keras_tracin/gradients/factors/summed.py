"""Gradients of small variables, as sums over positions.

Scales, offsets and tables of positions have few entries, so their gradients
are held in whole; only scores by position look at the terms of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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


def summed_over(
    terms: Sequence[tf.Tensor], axes: Sequence[int]
) -> DenseGradients | PositionGradients:
    """Gradients that are sums over axes; those over positions are made last.

    Args:
        terms: the terms `[n, ...]` of each variable.
        axes: the axes to sum over; that behind the examples is taken for the
            positions of a sequence.
    """
    others = [axis for axis in axes if axis != 1]
    rows = [tf.reduce_sum(x, axis=others) if others else x for x in terms]
    if 1 not in axes:
        sums = [tf.reshape(x, [-1, _width(x.shape[1:])]) for x in rows]
        return DenseGradients(tuple(sums))
    parts = []
    for term in rows:
        t = term.shape[1]
        size = tf.shape(term)[1] if t is None else t
        parts.append(tf.reshape(term, [-1, size, _width(term.shape[2:])]))
    return PositionGradients(tuple(parts))


def _width(shape: tf.TensorShape) -> int:
    return math.prod(shape)


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
def _(factors: PositionGradients, terms: bool = False) -> list[Factors]:
    parts = [
        PositionGradients((part,), factors.rows, factors.calls)
        for part in factors.parts
    ]
    return list(parts) if terms else list(map(materialize, parts))
