"""Converts factors to flat rows, and rows to factors.

A row `[p]` is the gradient of one example: the flattened variables, one after
another. Curvature matrices and dense projections act on this space.

Synopsis:

    vectors = rows(captured.factors)             # [n, p]
    queries = directions(vectors, variables)     # for `inner`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import DenseGradients, Factors

Groups = Sequence[Sequence[keras.Variable]]


def rows(factors: Sequence[Factors]) -> tf.Tensor:
    """The gradients of `n` examples as rows `[n, p]`."""
    parts = [p for group in factors for p in algebra.materialize(group).parts]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


def directions(vectors: tf.Tensor, variables: Groups) -> tuple[Any, ...]:
    """Rows `[m, p]` as dense gradients, one entry for each group."""
    sizes = [size_of(v) for group in variables for v in group]
    parts = iter(tf.split(vectors, sizes, axis=1))
    return tuple(
        DenseGradients(tuple(next(parts) for _ in group)) for group in variables
    )


def direction_specs(
    variables: Groups, factors: Sequence[Factors]
) -> tuple[Any, ...]:
    """Types of `directions` for factors of these types."""
    return tuple(
        DenseGradients(
            tuple(
                tf.TensorSpec([None, size_of(v)], _dtype(group_factors))
                for v in group
            )
        )
        for group, group_factors in zip(variables, factors, strict=True)
    )


def vector_specs(variables: Groups, factors: Sequence[Factors]) -> tuple:
    """Types of one direction for factors of these types, `[size]` each."""
    return tuple(
        tuple(tf.TensorSpec([size_of(v)], _dtype(group_factors)) for v in group)
        for group, group_factors in zip(variables, factors, strict=True)
    )


def size_of(variable: keras.Variable) -> int:
    """Number of entries of a variable."""
    return int(tf.TensorShape(variable.shape).num_elements())


def nbytes(value: Any) -> int:
    """The size in memory of a tensor or variable."""
    count = int(tf.TensorShape(value.shape).num_elements())
    return count * tf.as_dtype(value.dtype).size


def _dtype(factors: Factors) -> tf.DType:
    return tf.nest.flatten(factors)[-1].dtype  # ids come before grads
