"""Steps that measure gradients by a metric, and divide by their lengths.

A score is `s(z, z') = ∇ℓ(z)ᵀ D ∇ℓ(z')`, and unit lengths divide it by
`√s(z, z)` of the training example, and by that of the query. Both sides are
multiplied by √D and, if there is a projection, projected; everything else is
that of plain gradients.

Synopsis:

    steps = MetricSteps.of(functions, Metric(weighs="factored", unit="train"))
    roots = steps.roots(lambda variable: diagonal(optimizer, variable))
    queries = steps.queries(data, roots)
    steps.products(data, queries, roots, rate)   # [m, n]
    steps.norms(data, roots, rate)               # [n]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_tracin.engine.metric import (
    Root,
    has_sides,
    per_length,
    root_of,
    squared_lengths,
    times,
    to_unit_size,
    weigh,
)
from keras_tracin.engine.steps import (
    POSITION,
    RATE,
    GradientFunctions,
    scaled_sum,
    specs_of,
)
from keras_tracin.engine.token_steps import shares_by_token
from keras_tracin.engine.updated import scale
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import Captured
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.flat import size_of


@dataclasses.dataclass(frozen=True)
class Metric:
    """How gradients are measured.

    Attributes:
        weighs: how D is multiplied, if there is one.
        unit: whose gradients are divided by their length: training examples',
            or those of queries too.
    """

    weighs: Literal["exact", "factored"] | None = None
    unit: Literal["train", "both"] | None = None


class MetricSteps:
    """The compiled steps that measure gradients by a metric.

    Args:
        functions: the steps for plain gradients of the same examples.
        metric: the metric.
    """

    def __init__(self, functions: GradientFunctions, metric: Metric):
        self._functions, self._metric = functions, metric
        self._capturing = functions.capturing
        self._position = (POSITION,) if functions.projects else ()

    @classmethod
    def of(cls, functions: GradientFunctions, metric: Metric) -> MetricSteps:
        """The steps for these functions, traced once."""
        return functions.kept(metric, lambda: cls(functions, metric))

    @functools.cached_property
    def pieces(self) -> tuple[tuple[Factors, keras.Variable], ...]:
        """Factors that D multiplies, as types, each with its variable."""
        if self._metric.weighs is None:
            return ()
        captured = self._capturing.structure
        return tuple(
            (factors, self._capturing.variables[at])
            for factors, at in zip(
                _in_pieces(captured), _places(captured), strict=True
            )
        )

    def roots(
        self, diagonals: Callable[[keras.Variable], tf.Tensor]
    ) -> tuple[Root, ...]:
        """√D of each piece.

        Args:
            diagonals: gives D of a variable, flat.
        """
        return tuple(
            tuple(
                tf.cast(root, spec.dtype)
                for root, spec in zip(
                    root_of(factors, diagonals(variable), self._by_sides),
                    specs,
                    strict=True,
                )
            )
            for (factors, variable), specs in zip(
                self.pieces, self._root_specs, strict=True
            )
        )

    @property
    def _by_sides(self) -> bool:
        """Whether D multiplies rows and columns."""
        return self._metric.weighs == "factored"

    @functools.cached_property
    def _root_specs(self) -> tuple[tuple[tf.TensorSpec, ...], ...]:
        specs = []
        for factors, variable in self.pieces:
            sizes: Sequence[int] = (size_of(variable),)
            if self._by_sides and has_sides(factors):
                columns = tf.nest.flatten(factors)[-1].shape[-1]
                sizes = (size_of(variable) // columns, columns)
            dtype = tf.nest.flatten(factors)[-1].dtype
            specs.append(tuple(tf.TensorSpec([n], dtype) for n in sizes))
        return tuple(specs)

    def _measured(
        self, data: Any, roots: tuple[Root, ...], position: tuple = ()
    ) -> tuple:
        """√D times the gradients of a batch, projected, in compact form.

        Of gradients that are divided by their length, any multiple will do.
        """
        own = self._measured_in_full(data, roots, position)
        return own if self._metric.unit is None else to_unit_size(own)[0]

    def _measured_in_full(
        self, data: Any, roots: tuple[Root, ...], position: tuple = ()
    ) -> tuple:
        captured = self._capturing.capture(data)
        weighed = map(algebra.summed, self._weigh(captured, roots))
        factors = self._capturing.project(tuple(weighed), position)
        return self._capturing.compact(factors)

    def _weigh(self, captured: Captured, roots: tuple[Root, ...]) -> tuple:
        if self._metric.weighs is None:
            shares = self._capturing.shares_of(captured)
            return tuple(
                scale(factors, share if share is None else tf.sqrt(share))
                for factors, share in zip(captured.factors, shares, strict=True)
            )
        pieces = _in_pieces(self._capturing.check_equal(captured))
        return tuple(map(weigh, pieces, roots))

    @functools.cached_property
    def queries(self) -> Any:
        """`(data, roots, *position) -> factors`, compact and of any length."""
        return self._functions.traced(
            lambda data, roots, *position: self._measured_in_full(
                data, roots, position
            ),
            self._root_specs,
            *self._position,
            axis=0,
        )

    @functools.cached_property
    def _query_specs(self) -> tuple:
        steps = self.of(self._functions.for_queries, self._metric)
        trace = steps.queries.get_concrete_function()
        return specs_of(trace.structured_outputs)

    @functools.cached_property
    def products(self) -> Callable:
        """`(data, queries, roots, rate, *position) -> rate · [m, n]`."""

        def step(data, queries, roots, rate, *position):
            own = self._measured(data, roots, position)
            shares = [
                algebra.inner(query, factors)
                for query, factors in zip(queries, own, strict=True)
            ]
            return scaled_sum(rate, shares) * self._per_length(own)

        return self._traced(step, self._query_specs)

    def by_token(self, tokens: int) -> Callable:
        """`products` by positions of training examples, `[m, tokens + 1, n]`.

        Args:
            tokens: number of positions; the last row is of none.
        """

        def step(data, queries, roots, rate):
            captured = self._capturing.capture_anew(data, by_position=True)
            terms = self._weigh(captured, roots)
            if self._metric.unit is not None:
                terms, _ = to_unit_size(terms)
            own = self._capturing.compact(tuple(map(algebra.summed, terms)))
            shares = shares_by_token(terms, own, queries, tokens)
            return tf.cast(rate, shares.dtype) * shares * self._per_length(own)

        return self._functions.kept(
            (self._metric, tokens),
            lambda: self._traced(step, self._query_specs),
        )

    @functools.cached_property
    def contractions(self) -> Callable:
        """`(data, directions, roots, rate, *position) -> rate · [1, n]`."""

        def step(data, directions, roots, rate, *position):
            own = self._measured(data, roots, position)
            shares = [
                algebra.contract(factors, direction)
                for factors, direction in zip(own, directions, strict=True)
            ]
            sums = scaled_sum(rate, shares) * self._per_length(own)
            return sums[tf.newaxis]

        steps = self.of(self._functions.for_queries, self._metric)
        trace = steps.totals.get_concrete_function()
        return self._traced(step, specs_of(trace.structured_outputs))

    @functools.cached_property
    def totals(self) -> Any:
        """`(data, roots, *position) -> directions`, sums over queries."""

        def step(data, roots, *position):
            own = self._measured_in_full(data, roots, position)
            if self._metric.unit == "both":
                own, _ = to_unit_size(own)
                own = times(own, per_length(squared_lengths(own)))
            return tuple(map(algebra.total, own))

        specs = (self._root_specs, *self._position)
        return self._functions.traced(step, *specs, axis=None)

    @functools.cached_property
    def norms(self) -> Callable:
        """`(data, roots, rate, *position) -> rate · [n]`.

        The squared lengths, or with unit lengths of training examples the
        lengths themselves.
        """

        def step(data, roots, rate, *position):
            own = self._measured_in_full(data, roots, position)
            if self._metric.unit is None:
                return scaled_sum(rate, [squared_lengths(own)])
            own, sizes = to_unit_size(own)
            return scaled_sum(rate, [sizes * tf.sqrt(squared_lengths(own))])

        return self._traced(step)

    def _traced(self, step: Callable, *specs: Any) -> Callable:
        more = (*specs, self._root_specs, RATE, *self._position)
        return self._functions.traced(step, *more, axis=-1)

    def _per_length(self, factors: tuple) -> tf.Tensor:
        """One over the lengths of training gradients, `[n]`; or one."""
        if self._metric.unit is None:
            return tf.ones([], tf.nest.flatten(factors)[-1].dtype)
        return per_length(squared_lengths(factors))


def unit_products_along(
    functions: GradientFunctions, tokens: int | None = None
) -> Callable:
    """`(data, directions, diagonals, rate) -> rate · [m, n]`, by whole rows.

    Products of directions with gradients, divided by `√(∇ℓ(z)ᵀ D ∇ℓ(z))`.

    Args:
        functions: the steps for plain gradients.
        tokens: number of positions to tell apart, `[m, tokens + 1, n]`; None
            for not at all.
    """
    capturing = functions.capturing

    def step(data, directions, diagonals, rate):
        terms, _ = to_unit_size(capturing.factors_by_position(data, equal=True))
        own = tuple(map(algebra.summed, terms))
        squares = _weighted_squares(own, diagonals)
        if tokens is None:
            shares = tf.add_n(
                [
                    algebra.inner(direction, factors)
                    for direction, factors in zip(directions, own, strict=True)
                ]
            )
        else:
            compact = capturing.compact(own)
            shares = shares_by_token(terms, compact, directions, tokens)
        return tf.cast(rate, shares.dtype) * shares * per_length(squares)

    def make():
        specs = functions.direction_specs, functions.diagonal_specs, RATE
        return functions.traced(step, *specs, axis=-1)

    return functions.kept(("unit products along", tokens), make)


def lengths_along(functions: GradientFunctions) -> Callable:
    """`(data, diagonals, rate) -> rate · [n]`, `√(∇ℓ(z)ᵀ D ∇ℓ(z))`.

    Args:
        functions: the steps for plain gradients.
    """

    def step(data, diagonals, rate):
        captured = functions.capturing.capture_equal(data)
        own, sizes = to_unit_size(captured.factors)
        lengths = tf.sqrt(_weighted_squares(own, diagonals))
        return scaled_sum(rate, [sizes * lengths])

    def make():
        return functions.traced(step, functions.diagonal_specs, RATE, axis=-1)

    return functions.kept("lengths along", make)


def _weighted_squares(factors: Sequence[Factors], diagonals: Any) -> tf.Tensor:
    squares = [
        algebra.weighted_norm(group, weights)
        for group, weights in zip(factors, diagonals, strict=True)
    ]
    return tf.maximum(tf.add_n(squares), 0)


def _in_pieces(captured: Captured) -> list[Factors]:
    """Factors of one variable each, in the order of `_places`."""
    return [
        piece
        for factors in captured.factors
        for piece in algebra.split(factors, terms=True)
    ]


def _places(captured: Captured) -> list[int]:
    return [at for members in captured.positions for at in members]
