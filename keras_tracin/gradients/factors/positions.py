"""Inner products of gradients, position by position of one side.

The gradient of a layer that is applied to each position of a sequence is a sum
over positions, and so is its product with any other gradient. A position is
that of the layer's input, the *activation* (Grosse et al. 2023, sec. 5.3): what
the layer computed there, and not which term of the loss it served.

Synopsis:

    shares = inner_by_position(train, queries)   # [n, m, t] for each call
    sum(tf.reduce_sum(one, 2) for one in shares)     # inner(train, queries)
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
    PositionGradients,
    TableFactors,
)
from keras_tracin.gradients.factors.outer import loaded


@functools.singledispatch
def inner_by_position(left: Factors, right: Any) -> list[tf.Tensor]:
    """The terms of `inner(left, right)`, by the positions of the left side.

    Args:
        left: factors of `n` examples, not in their compact form.
        right: factors of `m` examples for the same variables, in their
            compact form or materialized.

    Returns:
        `[n, m, t]` for each call of the layer; an empty list where the left
        side is a sum over positions, or has none.
    """
    return []


@inner_by_position.register
def _(left: OuterFactors, right: Any) -> list[tf.Tensor]:
    return _by_call(left, _of_outer(left, right), left.runs)


def _of_outer(left: OuterFactors, right: Any) -> tf.Tensor:
    if isinstance(right, OuterFactors):
        inputs = tf.einsum("nti,msi->nmts", left.inputs, right.inputs)
        grads = tf.einsum("nto,mso->nmts", left.grads, right.grads)
        if left.bias:
            inputs += 1.0
        return tf.reduce_sum(inputs * grads, axis=3)
    kernel, *bias = right.parts
    outputs = tf.einsum("nti,mio->nmto", left.inputs, loaded(left, kernel))
    if left.bias:
        outputs += bias[0][:, tf.newaxis]
    return tf.einsum("nmto,nto->nmt", outputs, left.grads)


@inner_by_position.register
def _(left: LookupFactors, right: Any) -> list[tf.Tensor]:
    return _by_call(left, _of_lookups(left, right))


def _of_lookups(left: LookupFactors, right: Any) -> tf.Tensor:
    if isinstance(right, LookupFactors):
        ids = left.ids[:, tf.newaxis, :, tf.newaxis]
        same = tf.equal(ids, right.ids[tf.newaxis, :, tf.newaxis])
        products = tf.einsum("nto,mso->nmts", left.grads, right.grads)
        return tf.reduce_sum(tf.where(same, products, 0), axis=3)

    def along(table):
        rows = tf.gather(tf.reshape(table, [left.vocabulary, -1]), left.ids)
        return tf.reduce_sum(rows * left.grads, axis=2)

    # One query at a time: all rows together would be [m, n, t, o].
    (tables,) = right.parts
    spec = tf.TensorSpec([None, left.ids.shape[1]], tables.dtype)
    shares = tf.map_fn(along, tables, fn_output_signature=spec)
    return tf.transpose(shares, [1, 0, 2])


@inner_by_position.register
def _(left: PositionGradients, right: DenseGradients) -> list[tf.Tensor]:
    shares = []
    for own, other in zip(left.parts, right.parts, strict=True):
        if left.rows is None:
            shares.append(tf.einsum("ntp,mp->nmt", own, other))
            continue
        first, count = left.rows
        table = tf.reshape(other, [-1, count, own.shape[2]])
        rows = table[:, first : first + tf.shape(own)[1]]
        shares.append(tf.einsum("nto,mto->nmt", own, rows))
    return _by_call(left, tf.add_n(shares))


@inner_by_position.register
def _(left: TableFactors, right: Any) -> list[tf.Tensor]:
    looked_up, outer = left.looked_up, left.outer
    if isinstance(right, DenseGradients):
        by_rows, by_inputs = (
            _of_lookups(looked_up, right),
            _of_outer(outer, right),
        )
    else:
        by_rows = _of_lookups(looked_up, right.looked_up) + _crossed(
            looked_up, right.outer, "mstn,nto,mso->nmt"
        )
        by_inputs = _of_outer(outer, right.outer) + _crossed(
            right.looked_up, outer, "ntsm,mso,nto->nmt"
        )
    return _by_call(looked_up, by_rows) + _by_call(outer, by_inputs, outer.runs)


def _by_call(left: Any, shares: tf.Tensor, runs: int = 1) -> list[tf.Tensor]:
    """Shares `[n, m, t]` of all entries, as one tensor for each call."""
    n, m = tf.unstack(tf.shape(shares)[:2])
    sums = []
    for own in tf.split(shares, left.calls, 2) if left.calls else [shares]:
        if runs > 1:
            t = own.shape[2]
            positions = -1 if t is None else t // runs
            own = tf.reduce_sum(tf.reshape(own, [n, m, positions, runs]), 3)
        sums.append(own)
    return sums


def _crossed(rows: LookupFactors, outer: OuterFactors, form: str) -> tf.Tensor:
    """Products of look-ups with outer products, `x[id] (g · δ)` of each pair.

    Args:
        rows: look-ups of one side.
        outer: outer products of the other side.
        form: how the entries of x at the ids, `[outer's n, t, s, rows' n]`,
            the rows' gradients and the outer gradients are summed.
    """
    entries = tf.gather(outer.inputs, tf.transpose(rows.ids), axis=2)
    return tf.einsum(form, entries, rows.grads, outer.grads)
