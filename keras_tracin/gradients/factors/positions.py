"""Inner products of gradients, position by position of one side.

The gradient of a layer that is applied to each position of a sequence is a sum
over positions, and so is its product with any other gradient. A position is
that of the layer's input, the *activation* (Grosse et al. 2023, sec. 5.3): what
the layer computed there, and not which term of the loss it served.

Synopsis:

    shares = inner_by_position(train, queries)   # [n, m, t]
    tf.reduce_sum(shares, 2)                     # inner(train, queries)
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
    TableFactors,
)


@functools.singledispatch
def inner_by_position(left: Factors, right: Any) -> tf.Tensor | None:
    """The terms of `inner(left, right)`, by the positions of the left side.

    Args:
        left: factors of `n` examples, not in their compact form.
        right: factors of `m` examples for the same variables, in their
            compact form or materialized.

    Returns:
        `[n, m, t]`; None where the left side is a sum over positions, or has
        none.
    """
    return None


@inner_by_position.register
def _of_outer(left: OuterFactors, right: Any) -> tf.Tensor:
    t, i, o = left.sizes
    if isinstance(right, OuterFactors):
        inputs = tf.einsum("nti,msi->nmts", left.inputs, right.inputs)
        grads = tf.einsum("nto,mso->nmts", left.grads, right.grads)
        if left.bias:
            inputs += 1.0
        shares = tf.reduce_sum(inputs * grads, axis=3)
    else:
        kernel, *bias = right.parts
        kernel = tf.reshape(kernel, [-1, i, o])
        outputs = tf.einsum("nti,mio->nmto", left.inputs, kernel)
        if left.bias:
            outputs += bias[0][:, tf.newaxis]
        shares = tf.einsum("nmto,nto->nmt", outputs, left.grads)
    if left.runs == 1:
        return shares
    n, m = tf.unstack(tf.shape(shares)[:2])
    positions = -1 if t is None else t // left.runs
    runs = tf.reshape(shares, [n, m, positions, left.runs])
    return tf.reduce_sum(runs, axis=3)


@inner_by_position.register
def _of_lookups(left: LookupFactors, right: Any) -> tf.Tensor:
    if isinstance(right, LookupFactors):
        ids = left.ids[:, tf.newaxis, :, tf.newaxis]
        same = tf.equal(ids, right.ids[tf.newaxis, :, tf.newaxis])
        products = tf.einsum("nto,mso->nmts", left.grads, right.grads)
        return tf.reduce_sum(tf.where(same, products, 0), axis=3)
    table = tf.reshape(
        right.parts[0], [-1, left.vocabulary, left.grads.shape[-1]]
    )
    rows = tf.gather(table, left.ids, axis=1)  # [m, n, t, o]
    return tf.einsum("mnto,nto->nmt", rows, left.grads)


@inner_by_position.register
def _(left: TableFactors, right: Any) -> tf.Tensor | None:
    looked_up, outer = left.looked_up, left.outer
    if looked_up.ids.shape[1] != outer.sizes[0]:
        return None
    if isinstance(right, DenseGradients):
        return _of_lookups(looked_up, right) + _of_outer(outer, right)
    return (
        _of_lookups(looked_up, right.looked_up)
        + _of_outer(outer, right.outer)
        + _crossed(looked_up, right.outer, "mstn,nto,mso->nmt")
        + _crossed(right.looked_up, outer, "ntsm,mso,nto->nmt")
    )


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
