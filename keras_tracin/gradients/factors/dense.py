"""Operations on materialized gradients."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Direction,
    Factors,
)
from keras_tracin.gradients.factors.operations import (
    contract,
    inner,
    materialize,
    split,
    squared_norm,
    total,
)


def one_by_one(left: Factors, right: DenseGradients) -> tf.Tensor:
    """Inner products with one direction at a time.

    Nothing of a kernel's size is allocated for each example, at `t` times the
    multiplications of a product of materialized gradients.
    """
    dtype = right.parts[0].dtype
    columns = tf.map_fn(
        lambda direction: contract(left, direction),
        right.parts,
        fn_output_signature=tf.TensorSpec([None], dtype),
    )
    return tf.transpose(columns)


@materialize.register
def _(factors: DenseGradients) -> DenseGradients:
    return factors


@inner.register
def _(left: DenseGradients, right: Any) -> tf.Tensor:
    if not isinstance(right, DenseGradients):
        return tf.transpose(inner(right, left))
    return tf.add_n(
        [
            tf.matmul(a, b, transpose_b=True)
            for a, b in zip(left.parts, right.parts, strict=True)
        ]
    )


@squared_norm.register
def _(factors: DenseGradients) -> tf.Tensor:
    return tf.add_n(
        [tf.reduce_sum(tf.square(part), axis=1) for part in factors.parts]
    )


@total.register
def _(factors: DenseGradients) -> Direction:
    return tuple(tf.reduce_sum(part, axis=0) for part in factors.parts)


@contract.register
def _(factors: DenseGradients, direction: Direction) -> tf.Tensor:
    return tf.add_n(
        [
            tf.linalg.matvec(part, vector)
            for part, vector in zip(factors.parts, direction, strict=True)
        ]
    )


@split.register
def _(factors: DenseGradients, terms: bool = False) -> list[Factors]:
    return [DenseGradients((part,)) for part in factors.parts]
