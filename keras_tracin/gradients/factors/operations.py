"""What can be done with factors; each kind's module says how.

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

    Of a table, these have all its rows.
    """
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@functools.singledispatch
def compact(factors: Factors, sparing: bool = False) -> Factors:
    """The form in which inner products with many others are cheapest.

    Position pairs cost `t² (i + o)` a pair of examples, materialised gradients
    `i·o` a pair (and `t·i·o` once an example); a table's lookups add pairs of
    `s` positions with the `t` of its product. The choice depends on static
    shapes alone, so both sides of a product make the same one.

    Args:
        factors: those of any number of examples.
        sparing: take the form with the fewest numbers instead, `t (i + o)` of
            an example against `i·o`.
    """
    return factors


@dataclasses.dataclass(frozen=True)
class Work:
    """What an example's gradient in its `compact` form takes.

    Attributes:
        held: bytes.
        making: multiplications in the backward pass that makes it.
        pairing: multiplications in a product with one other.
    """

    held: int
    making: int = 0
    pairing: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.held + other.held,
            self.making + other.making,
            self.pairing + other.pairing,
        )


@functools.singledispatch
def work(factors: Factors, sparing: bool = False) -> Work:
    """What an example takes, as far as its two forms differ in it.

    Args:
        factors: those of any number of examples, or their shapes.
        sparing: as in `compact`.
    """
    leaves = tf.nest.flatten(factors)
    return Work(sum(x.shape[1:].num_elements() * x.dtype.size for x in leaves))


@functools.singledispatch
def inner(left: Factors, right: Factors) -> tf.Tensor:
    """Inner products of every gradient on the left with every on the right.

    Args:
        left: factors of `n` examples.
        right: factors of `m` examples for the same variables, in the same
            form or materialised: `m` directions of any kind.

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
    """Each gradient's squared length with a weight for every entry, `[n]`.

    Args:
        factors: factors of `n` examples.
        weights: a flat vector per variable, as `total` returns.
    """
    full = materialize(factors)
    squared = tuple(tf.square(part) for part in full.parts)
    return contract(DenseGradients(squared), weights)


@functools.singledispatch
def split(factors: Factors) -> list[Factors]:
    """The same gradients with each variable's factors on their own."""
    return [factors]
