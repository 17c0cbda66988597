"""Operations on rows of a table that were looked up."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_tracin.gradients import lookup
from keras_tracin.gradients.factors.dense import one_by_one
from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Direction,
    LookupFactors,
)
from keras_tracin.gradients.factors.operations import (
    contract,
    inner,
    materialize,
    squared_norm,
    total,
)


@materialize.register
def _(factors: LookupFactors) -> DenseGradients:
    n = tf.shape(factors.ids)[0]
    size, width = factors.vocabulary, factors.grads.shape[-1]
    first_rows = tf.range(n)[:, tf.newaxis] * size
    tables = tf.math.unsorted_segment_sum(
        tf.reshape(factors.grads, [-1, width]),
        tf.reshape(first_rows + factors.ids, [-1]),
        n * size,
    )
    return DenseGradients((tf.reshape(tables, [n, size * width]),))


@inner.register
def _(left: LookupFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        return one_by_one(left, right)
    return lookup.shared_products(left.ids, left.grads, right.ids, right.grads)


@squared_norm.register
def _(factors: LookupFactors) -> tf.Tensor:
    same = tf.equal(factors.ids[:, :, None], factors.ids[:, None, :])
    products = tf.matmul(factors.grads, factors.grads, transpose_b=True)
    return tf.reduce_sum(tf.where(same, products, 0.0), axis=[1, 2])


@total.register
def _(factors: LookupFactors) -> Direction:
    table = tf.math.unsorted_segment_sum(
        factors.grads, factors.ids, factors.vocabulary
    )
    return (tf.reshape(table, [-1]),)


@contract.register
def _(factors: LookupFactors, direction: Direction) -> tf.Tensor:
    table = tf.reshape(direction[0], [factors.vocabulary, -1])
    return tf.reduce_sum(
        tf.gather(table, factors.ids) * factors.grads, axis=[1, 2]
    )
