"""Operations on factors, implemented in a module for each kind.

Synopsis:

    @inner.register
    def _(left: OuterFactors, right: Any) -> tf.Tensor: ...
"""

from __future__ import annotations

import dataclasses
import functools

import tensorflow as tf

from keras_tracin.gradients.factors.kinds import (
    DenseGradients,
    Direction,
    Factors,
)


@functools.singledispatch
def materialize(factors: Factors) -> DenseGradients:
    """The gradients themselves: `[n, i·o]`, and `[n, o]` for a bias.

    Gradients of a table have all its rows.
    """
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@functools.singledispatch
def compact(factors: Factors, sparing: bool = False) -> Factors:
    """The form in which inner products with many others are cheapest.

    Products of all pairs of positions cost `t² (i + o)` for a pair of examples,
    products of materialized gradients `i·o` (and `t·i·o` once per example);
    look-ups of a table add pairs of `s` with `t` positions. The choice depends
    on static shapes alone, so both sides of a product make the same one.

    Args:
        factors: factors of any number of examples.
        sparing: If true, the form that needs the least memory is chosen
            instead: `t (i + o)` or `i·o` entries per example.
    """
    return factors


@dataclasses.dataclass(frozen=True)
class Work:
    """Cost of one example's gradient in its `compact` form.

    Attributes:
        nbytes: bytes of memory.
        making: multiplications of the backward pass that computes it.
        pairing: multiplications of an inner product with another gradient.
    """

    nbytes: int
    making: int = 0
    pairing: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.nbytes + other.nbytes,
            self.making + other.making,
            self.pairing + other.pairing,
        )


@functools.singledispatch
def work(factors: Factors, sparing: bool = False) -> Work:
    """Cost of one example, as far as it depends on the form of its gradient.

    Args:
        factors: factors of any number of examples, or their shapes.
        sparing: same argument as of `compact`.
    """
    leaves = tf.nest.flatten(factors)
    return Work(sum(x.shape[1:].num_elements() * x.dtype.size for x in leaves))


@functools.singledispatch
def inner(left: Factors, right: Factors) -> tf.Tensor:
    """Inner products of every gradient on the left with every on the right.

    Args:
        left: factors of `n` examples.
        right: factors of `m` examples for the same variables, in the same
            form or materialized: `m` directions of any kind.

    Returns:
        `[n, m]`.
    """
    raise TypeError(f"Expected factors of gradients, received: {type(left)}.")


@functools.singledispatch
def squared_norm(factors: Factors) -> tf.Tensor:
    """The squared length of each example's gradient, `[n]`."""
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@functools.singledispatch
def total(factors: Factors) -> Direction:
    """The sum of all examples' gradients: one flat vector per variable."""
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@functools.singledispatch
def contract(factors: Factors, direction: Direction) -> tf.Tensor:
    """The inner product of each example's gradient with one direction.

    Args:
        factors: factors of `n` examples.
        direction: a flat vector per variable, as `total` returns.

    Returns:
        `[n]`.
    """
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@functools.singledispatch
def weighted_norm(factors: Factors, weights: Direction) -> tf.Tensor:
    """Squared length of each gradient, with a weight for every entry, `[n]`.

    Args:
        factors: factors of `n` examples.
        weights: a flat vector per variable, as `total` returns.
    """
    full = materialize(factors)
    squared = tuple(tf.square(part) for part in full.parts)
    return contract(DenseGradients(squared), weights)


@functools.singledispatch
def split(factors: Factors, terms: bool = False) -> list[Factors]:
    """Splits factors into separate factors for each variable.

    Args:
        factors: factors of any number of examples.
        terms: whether a sum over positions keeps its terms, as
            `PositionGradients`.
    """
    return [factors]
