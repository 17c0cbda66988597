"""Operations on tables that are looked up and used as a kernel."""

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
    Work,
    compact,
    contract,
    inner,
    materialize,
    squared_norm,
    total,
    work,
)


@materialize.register
def _(factors: TableFactors) -> DenseGradients:
    (rows,) = materialize(factors.looked_up).parts
    (outer,) = materialize(factors.outer).parts
    return DenseGradients((rows + outer,))


def _is_compact(factors: TableFactors, sparing: bool) -> bool:
    """Whether the compact form is that of factors."""
    t, i, o = factors.outer.sizes
    s = factors.looked_up.ids.shape[1]
    if t is None or s is None:
        return False
    if sparing:
        return t * (i + o) + s * (o + 1) < i * o
    return t * t * (i + o) + 2 * s * t * (o + 1) < i * o


@compact.register
def _(factors: TableFactors, sparing: bool = False) -> Factors:
    return factors if _is_compact(factors, sparing) else materialize(factors)


@work.register
def _(factors: TableFactors, sparing: bool = False) -> Work:
    t, i, o = factors.outer.sizes
    s, size = factors.looked_up.ids.shape[1], factors.outer.grads.dtype.size
    if _is_compact(factors, sparing):
        pairing = t * t * (i + o) + 2 * s * t * (o + 1)
        nbytes = size * (t * (i + o) + s * (o + 1))
        return Work(nbytes, 2 * t * i * o, pairing)
    return Work(size * i * o, 3 * (t or 1) * i * o, i * o)


@inner.register
def _(left: TableFactors, right: Any) -> tf.Tensor:
    if isinstance(right, DenseGradients):
        return inner(materialize(left), right)
    return (
        inner(left.looked_up, right.looked_up)
        + inner(left.outer, right.outer)
        + _cross_products(left.looked_up, right.outer)
        + tf.transpose(_cross_products(right.looked_up, left.outer))
    )


def _cross_products(left: LookupFactors, right: OuterFactors) -> tf.Tensor:
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
