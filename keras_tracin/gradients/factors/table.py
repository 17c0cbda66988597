"""Tables that are looked up and multiplied by: sums of two kinds."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_tracin.gradients import lookup
from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Direction,
    Factors,
    LookupFactors,
    OuterFactors,
    TableFactors,
)
from keras_tracin.gradients.factors.operations import (
    compact,
    contract,
    inner,
    materialize,
    squared_norm,
    total,
)


@materialize.register
def _(factors: TableFactors) -> DenseGradients:
    (rows,) = materialize(factors.looked_up).parts
    (outer,) = materialize(factors.outer).parts
    return DenseGradients((rows + outer,))


@compact.register
def _(factors: TableFactors) -> Factors:
    t, i, o = factors.outer.sizes
    s = factors.looked_up.ids.shape[1]
    if t is None or s is None:
        return materialize(factors)
    if t * t * (i + o) + 2 * s * t * (o + 1) >= i * o:
        return materialize(factors)
    return factors


@inner.register
def _(left: TableFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        return inner(materialize(left), right)
    return (
        inner(left.looked_up, right.looked_up)
        + inner(left.outer, right.outer)
        + _inner_crossed(left.looked_up, right.outer)
        + tf.transpose(_inner_crossed(right.looked_up, left.outer))
    )


def _inner_crossed(left: LookupFactors, right: OuterFactors) -> tf.Tensor:
    return lookup.crossed_products(
        left.ids, left.grads, right.inputs, right.grads
    )


@squared_norm.register
def _(factors: TableFactors) -> tf.Tensor:
    rows, outer = factors.looked_up, factors.outer
    crossed = lookup.paired_products(
        rows.ids, rows.grads, outer.inputs, outer.grads
    )
    return squared_norm(rows) + squared_norm(outer) + 2.0 * crossed


@total.register
def _(factors: TableFactors) -> Direction:
    (rows,), (outer,) = total(factors.looked_up), total(factors.outer)
    return (rows + outer,)


@contract.register
def _(factors: TableFactors, direction: Direction) -> tf.Tensor:
    return contract(factors.looked_up, direction) + contract(
        factors.outer, direction
    )
