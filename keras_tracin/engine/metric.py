"""A diagonal metric D, multiplied into the factors of gradients.

A D that is `[i, o]` for a kernel multiplies factors where it is an outer
product itself, rows × columns; else gradients have to be written out, or are
looked up by rows.

Synopsis:

    root = root_of(factors, diagonal, by_sides=True)   # √D
    weigh(factors, root)                               # √D ∇ℓ
    times(factors, per_length(squared_lengths(factors)))
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
    PositionGradients,
    TableFactors,
    loaded,
)

Root = tuple[tf.Tensor, ...]  # (rows, columns) of a kernel, or all entries

_SMALLEST = 1e-30  # of D, whose logarithm is taken


def has_sides(factors: Factors) -> bool:
    """Whether such factors have rows and columns, as kernels and tables."""
    return isinstance(factors, OuterFactors | LookupFactors | TableFactors)


def root_of(factors: Factors, diagonal: tf.Tensor, by_sides: bool) -> Root:
    """√D for gradients of a variable.

    Args:
        factors: the gradients, or their types.
        diagonal: D, flat.
        by_sides: whether kernels and tables have rows × columns, of the outer
            product that is nearest to D in logarithms, by least squares.
    """
    if not by_sides or not has_sides(factors):
        return (tf.sqrt(diagonal),)
    outer = factors.outer if isinstance(factors, TableFactors) else factors
    if isinstance(outer, OuterFactors):
        matrix = loaded(outer, diagonal)[0]
    else:
        width = tf.nest.flatten(outer)[-1].shape[-1]
        matrix = tf.reshape(diagonal, [-1, width])
    return nearest_sides(matrix)


def nearest_sides(matrix: tf.Tensor) -> Root:
    """√ of the rows and columns whose outer product is nearest to a matrix.

    In logarithms, by least squares.

    Args:
        matrix: D, `[i, o]`.
    """
    logs = tf.math.log(tf.maximum(matrix, _SMALLEST))
    rows = tf.reduce_mean(logs, axis=1) - tf.reduce_mean(logs)
    return tf.exp(rows / 2), tf.exp(tf.reduce_mean(logs, axis=0) / 2)


def to_unit_size(factors: Sequence[Any]) -> tuple[tuple, tf.Tensor]:
    """Gradients whose largest number is one, and by what they were divided.

    The square of a gradient that is smaller than 1e-19 is zero in float32, and
    so is its length, where nothing of it is lost otherwise.

    Args:
        factors: the factors of all groups of variables.
    """
    sizes = largest_numbers(factors)
    return times(factors, 1 / sizes), sizes


def largest_numbers(*sides: Sequence[Any]) -> tf.Tensor:
    """The largest number in each example's gradient, `[n]`; one for zeros.

    Args:
        *sides: the factors of as many examples each, of which a number is that
            of all together.
    """
    largest = [
        tf.reduce_max(tf.abs(x), axis=list(range(1, x.shape.rank)))
        for side in sides
        for group in side
        for x in tf.nest.flatten(_linear(group))
    ]
    sizes = tf.reduce_max(tf.stack(largest), axis=0)
    return tf.where(sizes > 0, sizes, tf.ones_like(sizes))


def _linear(group: Any) -> Any:
    """The tensors that gradients are proportional to."""
    if isinstance(group, TableFactors):
        return group.looked_up.grads, group.outer.grads
    if isinstance(group, DenseGradients | PositionGradients):
        return group.parts
    return group.grads


def squared_lengths(factors: Sequence[Factors]) -> tf.Tensor:
    """The squared lengths of gradients `[n]`, over all groups."""
    squares = tf.add_n([algebra.squared_norm(group) for group in factors])
    return tf.maximum(squares, 0)


def per_length(squares: tf.Tensor) -> tf.Tensor:
    """One over each length; 0 for a gradient of nothing but zeros."""
    lengths = tf.sqrt(squares)
    return tf.math.divide_no_nan(tf.ones_like(lengths), lengths)


def times(factors: Sequence[Any], weights: tf.Tensor) -> tuple[Any, ...]:
    """Gradients times a number of each example, `[n]`."""

    def weighed(group: Any) -> Any:
        if isinstance(group, TableFactors):
            uses = group.looked_up, group.outer
            return TableFactors(*map(weighed, uses))
        whole = isinstance(group, DenseGradients | PositionGradients)
        name = "parts" if whole else "grads"
        tensors = tf.nest.map_structure(
            lambda x: x * _along_first(weights, x), getattr(group, name)
        )
        return dataclasses.replace(group, **{name: tensors})

    return tuple(map(weighed, factors))


def _along_first(weights: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Numbers `[n]` as `[n, 1, ...]`, of the rank and type of a tensor."""
    shape = [-1] + [1] * (like.shape.rank - 1)
    return tf.reshape(tf.cast(weights, like.dtype), shape)


@functools.singledispatch
def weigh(factors: Any, root: Root) -> Any:
    """√D times gradients; of terms of a sum, each of them.

    Args:
        factors: gradients of a single variable.
        root: as `root_of` returns it.
    """
    raise TypeError(f"Expected factors, received: {type(factors)}.")


@weigh.register
def _(factors: DenseGradients, root: Root) -> Factors:
    (part,) = factors.parts
    return dataclasses.replace(factors, parts=(part * root[0],))


@weigh.register
def _(factors: PositionGradients, root: Root) -> Factors:
    (part,), (entries,) = factors.parts, root
    if factors.rows is not None:
        first, count = factors.rows
        table = tf.reshape(entries, [count, part.shape[2]])
        entries = table[first : first + tf.shape(part)[1]]
    return dataclasses.replace(factors, parts=(part * entries,))


@weigh.register
def _(factors: OuterFactors, root: Root) -> Factors:
    if len(root) == 1:
        return weigh(algebra.materialize(factors), root)
    rows, columns = root
    return dataclasses.replace(
        factors, inputs=factors.inputs * rows, grads=factors.grads * columns
    )


@weigh.register
def _(factors: LookupFactors, root: Root) -> Factors:
    if len(root) == 1:
        table = tf.reshape(root[0], [factors.vocabulary, -1])
        weights = tf.gather(table, factors.ids)
    else:
        rows, columns = root
        weights = tf.gather(rows, factors.ids)[..., tf.newaxis] * columns
    return dataclasses.replace(factors, grads=factors.grads * weights)


@weigh.register
def _(factors: TableFactors, root: Root) -> Factors:
    if len(root) == 1:
        return weigh(algebra.materialize(factors), root)
    return TableFactors(
        weigh(factors.looked_up, root), weigh(factors.outer, root)
    )
