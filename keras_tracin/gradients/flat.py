"""All gradients of an example as one row, and rows back as factors.

A row `[p]` has the variables one after another, each flattened as it is
stored: the space in which curvature acts and in which sketches are drawn.

Synopsis:

    vectors = rows(captured.factors)             # [n, p]
    queries = directions(vectors, variables)     # to be given to `inner`
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
)

Groups = Sequence[Sequence[keras.Variable]]


def rows(factors: Sequence[Factors]) -> tf.Tensor:
    """The gradients of `n` examples in full, `[n, p]`."""
    parts = [part for group in factors for part in _in_full(group).parts]
    return parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)


@functools.singledispatch
def _in_full(factors: Factors) -> DenseGradients:
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@_in_full.register
def _(factors: OuterFactors) -> DenseGradients:
    return algebra.materialize(factors)


@_in_full.register
def _(factors: LookupFactors) -> DenseGradients:
    ids, grads = factors.ids, factors.grads
    n, width = tf.shape(ids)[0], grads.shape[-1]
    # Each example has a table of its own.
    tables = tf.math.unsorted_segment_sum(
        tf.reshape(grads, [-1, width]),
        tf.reshape(tf.range(n)[:, None] * factors.vocabulary + ids, [-1]),
        n * factors.vocabulary,
    )
    return DenseGradients(
        (tf.reshape(tables, [-1, factors.vocabulary * width]),)
    )


@_in_full.register
def _(factors: DenseGradients) -> DenseGradients:
    return factors


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
    """The types of `directions` for factors of these types."""
    return tuple(
        DenseGradients(
            tuple(
                tf.TensorSpec([None, size_of(v)], _dtype(found)) for v in group
            )
        )
        for group, found in zip(variables, factors, strict=True)
    )


def size_of(variable: keras.Variable) -> int:
    """How many numbers a variable holds."""
    return int(tf.TensorShape(variable.shape).num_elements())


def _dtype(factors: Factors) -> tf.DType:
    return tf.nest.flatten(factors)[-1].dtype  # ids come before grads
