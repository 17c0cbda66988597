"""TracIn's passes beside the plain ones: weighed, of unit length, over sums.

Synopsis:

    measurement = Measurement(normalize="both")
    measurement.query_pass("TracIn", queries, checkpoints)
    measurement.self_pass("TracIn", engine.train_steps, checkpoints)
    measurement.sum_pass("TracIn", queries, checkpoints)   # one row for all
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import tensorflow as tf

from keras_tracin.engine.metric import (
    largest_numbers,
    per_length,
    squared_lengths,
    times,
    to_unit_size,
)
from keras_tracin.engine.metric_steps import (
    Metric,
    MetricSteps,
    lengths_along,
    unit_products_along,
)
from keras_tracin.engine.passes import Pass, norms_pass, products_pass
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.runs import Checkpoint

Normalize = Literal["train", "both"] | None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How TracIn measures gradients.

    Attributes:
        normalize: whose gradients are divided by their lengths.
        aware: the diagonals D of an optimizer, if there is one.
        factored: whether D is rows × columns.
    """

    normalize: Normalize = None
    aware: Preconditioner | None = None
    factored: bool = False
    _kept: dict[Checkpoint, tuple] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    @property
    def plain(self) -> bool:
        """Whether scores are products of plain gradients."""
        return self.normalize is None and self.aware is None

    def in_full(self, steps: GradientFunctions) -> bool:
        """Whether queries' gradients are written out in full.

        Args:
            steps: the steps for training examples.
        """
        exact = self.aware is not None and not self.factored
        return exact and not steps.projects

    def query_pass(
        self, title: str, queries: Queries, weights: Weights
    ) -> Pass:
        """The pass that scores a block of queries.

        Args:
            title: the method's name.
            queries: a block of queries.
            weights: the checkpoints to sum over.
        """
        train = queries.steps.train
        if self.plain:
            return products_pass(title, queries, weights)
        if self.in_full(train):
            return self._products_in_full(title, queries, weights)
        steps = MetricSteps.of(train, self._metric)

        def prepare(visit: Visit):
            roots = self._roots(train, visit)
            factors = self._factors(queries, roots, visit)
            if self.normalize != "both":
                return factors, roots
            if queries.others is None:
                factors, _ = to_unit_size(factors)
                compared = factors
            else:
                others = self._factors(queries.others, roots, visit)
                sizes = largest_numbers(factors, others)
                factors = times(factors, 1 / sizes)
                compared = _differences(factors, times(others, 1 / sizes))
            weights = per_length(squared_lengths(compared))
            return times(factors, weights), roots

        return Pass(
            title,
            steps.products,
            weights,
            queries,
            prepare=prepare,
            arguments=_all_arguments,
            by_token=steps.by_token,
            held=self._bytes_of_roots(train),
        )

    def self_pass(
        self, title: str, steps: GradientFunctions, weights: Weights
    ) -> Pass:
        """The squared lengths of gradients; lengths where they are divided.

        Args:
            title: the method's name.
            steps: the compiled steps for training examples.
            weights: the checkpoints to sum over.
        """
        if self.plain:
            return norms_pass(title, steps, weights)
        if self.in_full(steps):
            return self._norms_in_full(title, steps, weights)
        measured = MetricSteps.of(steps, self._metric)
        return Pass(
            title,
            measured.norms,
            weights,
            prepare=lambda visit: (self._roots(steps, visit),),
            arguments=_all_arguments,
            held=self._bytes_of_roots(steps),
        )

    def sum_pass(self, title: str, queries: Queries, weights: Weights) -> Pass:
        """Products with the sum of the gradients of all queries, as one row.

        Args:
            title: the method's name.
            queries: all queries.
            weights: the checkpoints to sum over.
        """
        train, query = queries.steps.train, queries.steps.query
        if self.plain or (self.in_full(train) and self.normalize is None):

            def sum_up(visit: Visit):
                sums = _sum(query.totals, queries, *visit.sketched_at)
                if self.aware is None:
                    return (sums,)
                diagonals = self._diagonals(query, visit)
                return (tf.nest.map_structure(_product, sums, diagonals),)

            step = train.contractions
        else:
            step = MetricSteps.of(train, self._metric).contractions
            totals = MetricSteps.of(query, self._metric).totals

            def sum_up(visit: Visit):
                roots = self._roots(train, visit)
                given = roots, *visit.sketched_at
                return _sum(totals, queries, *given), roots

        return Pass(
            title,
            step,
            weights,
            queries,
            prepare=sum_up,
            arguments=_all_arguments,
            held=self._bytes_of_roots(train),
        )

    @property
    def _weighs(self) -> Literal["exact", "factored"] | None:
        if self.aware is None:
            return None
        return "factored" if self.factored else "exact"

    @property
    def _metric(self) -> Metric:
        return Metric(self._weighs, self.normalize)

    def _factors(self, queries: Queries, roots: tuple, visit: Visit) -> tuple:
        step = MetricSteps.of(queries.steps.query, self._metric).queries
        given = roots, *visit.sketched_at
        return algebra.concat(
            [step(batch.data, *given) for batch in queries.batches]
        )

    def _roots(self, train: GradientFunctions, visit: Visit) -> tuple:
        """√D at a checkpoint; rows and columns are small, and kept."""
        if self.aware is None:
            return ()
        checkpoint = _checkpoint_of(visit)
        if checkpoint in self._kept:
            return self._kept[checkpoint]
        steps = MetricSteps.of(train, self._metric)
        with self.aware.diagonals(checkpoint) as diagonal_of:
            roots = steps.roots(diagonal_of)
        if self.factored:
            self._kept[checkpoint] = roots
        return roots

    def _bytes_of_roots(self, steps: GradientFunctions) -> int:
        if self.aware is None or self.factored:
            return 0
        return bytes_of_diagonals(steps.model)

    def _diagonals(self, steps: GradientFunctions, visit: Visit) -> tuple:
        """D at a checkpoint, in the groups of the steps' variables."""
        assert self.aware is not None
        return tf.nest.map_structure(
            lambda diagonal, spec: tf.cast(diagonal, spec.dtype),
            self.aware.at(_checkpoint_of(visit), steps.variables),
            steps.diagonal_specs,
        )

    def _products_in_full(
        self, title: str, queries: Queries, weights: Weights
    ) -> Pass:
        """Products of gradients with D times the queries' whole gradients."""
        query, train = queries.steps.query, queries.steps.train
        if self.normalize is None:

            def weigh(visit: Visit):
                assert self.aware is not None
                # Nothing may keep rows that were cut up: they are large.
                parts = list(flat.directions(queries.rows(), query.variables))
                given = _checkpoint_of(visit), query.variables
                return self.aware.weigh(parts, *given)

            return Pass(title, train.along, weights, queries, prepare=weigh)

        def weigh_and_divide(visit: Visit):
            diagonals = self._diagonals(query, visit)
            rows = queries.rows()
            others = queries.others and queries.others.rows()
            if self.normalize == "both":
                sides = [rows] if others is None else [rows, others]
                parts = [(DenseGradients((side,)),) for side in sides]
                sizes = largest_numbers(*parts)[:, tf.newaxis]
                rows = rows / sizes
                others = None if others is None else others / sizes
            own = flat.directions(rows, query.variables)
            weighed: tuple[Any, ...] = tuple(
                DenseGradients(tuple(map(_product, part.parts, weights)))
                for part, weights in zip(own, diagonals, strict=True)
            )
            if self.normalize == "both":
                if others is not None:
                    own = flat.directions(rows - others, query.variables)
                weighed = times(weighed, per_length(_squares(own, diagonals)))
            return weighed, diagonals

        return Pass(
            title,
            unit_products_along(train),
            weights,
            queries,
            prepare=weigh_and_divide,
            arguments=_all_arguments,
            by_token=lambda tokens: unit_products_along(train, tokens),
            held=bytes_of_diagonals(train.model),
        )

    def _norms_in_full(
        self, title: str, steps: GradientFunctions, weights: Weights
    ) -> Pass:
        """The squared lengths of gradients under D, or the lengths."""
        step = steps.weighted_norms
        return Pass(
            title,
            step if self.normalize is None else lengths_along(steps),
            weights,
            prepare=lambda visit: (self._diagonals(steps, visit),),
            arguments=_all_arguments,
            held=bytes_of_diagonals(steps.model),
        )


def bytes_of_diagonals(model: keras.Model) -> int:
    """Size of a float32 number for each trainable weight."""
    return 4 * sum(map(flat.size_of, model.trainable_variables))


def _checkpoint_of(visit: Visit) -> Checkpoint:
    assert visit.checkpoint is not None  # TracIn visits no other weights
    return visit.checkpoint


def _all_arguments(visit: Visit, prepared: tuple) -> tuple:
    """The arguments of steps that take several things after the batch."""
    return *prepared, visit.rate, *visit.sketched_at


def _sum(step: Callable, queries: Queries, *arguments: Any) -> Any:
    """The sum of a step's results over the queries."""
    parts = [step(batch.data, *arguments) for batch in queries.batches]
    return tf.nest.map_structure(lambda *x: tf.add_n(x), *parts)


def _product(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    return values * tf.cast(weights, values.dtype)


def _squares(parts: Sequence[DenseGradients], diagonals: tuple) -> tf.Tensor:
    """Squared lengths under D, `[m]`."""
    return tf.add_n(
        [
            algebra.weighted_norm(part, weights)
            for part, weights in zip(parts, diagonals, strict=True)
        ]
    )


def _differences(left: tuple, right: tuple) -> tuple:
    """The differences of gradients, pair by pair."""
    minus = -tf.ones([tf.shape(tf.nest.flatten(right)[-1])[0]])
    return tuple(
        algebra.merge([own, other])
        for own, other in zip(left, times(right, minus), strict=True)
    )
