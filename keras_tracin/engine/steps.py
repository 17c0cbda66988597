"""Compiled steps: from a batch to factors, products and norms.

Each step is traced once, with the batch dimension left open, so that batches
of any size run without another trace.

Synopsis:

    functions = GradientFunctions(model, loss, like=batch.data)
    captured = functions.captured(batch.data)       # compact factors
    norms = functions.squared_norms(batch.data, rate)  # [n]
    scores = functions.products(batch.data, captured.factors, rate)  # [m, n]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.engine.capturing import Capturing
from keras_tracin.engine.distribution import Strategy, spread
from keras_tracin.engine.updated import UpdatedVariables
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import flat
from keras_tracin.gradients.capture import PerExampleLoss
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.projection import Projection


class GradientFunctions:
    """The compiled gradient steps of one model, loss and kind of batch.

    The class has a member for each step, traced when it is first used.

    Args:
        model: a built model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        like: `(x, y)` or `(x, y, sample_weight)` of any batch; later ones
            have its structure, dtypes and shapes, but for the number of
            examples.
        layers: restricts the gradients, as in `find_sites`.
        queries: the steps that make the factors `products` and
            `contractions` are given; these by default.
        strict: refuse losses that layers add from their inputs.
        strategy: the strategy to run under; each replica works on a share of
            a batch.
        projection: replaces gradients by sketches of them, in all steps but
            `captured`, `rows` and `along`. These steps then take one more
            argument at their end: the checkpoint's position.
        jit_compile: whether XLA compiles the steps, anew for each batch size.
        sparing: whether factors are held in the form that takes the least
            memory, not in the one that is multiplied fastest.
        updated: the shares of the variables at the checkpoints that are
            visited, in `products`, `contractions` and `squared_norms`. By
            default all are one.

    Attributes:
        model: the model that is differentiated.
        loss: the loss that is differentiated.
        restricted: whether `layers` restricts the gradients.
        projects: whether the steps make sketches.
        sparing: whether factors are held in their smallest form.
        updated: the shares of the variables at the checkpoints.
        covered_variables: the variables that gradients are taken by, as
            `Captured.positions` counts them.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: PerExampleLoss,
        like: Any,
        layers: Sequence[str | keras.Layer] | None = None,
        queries: GradientFunctions | None = None,
        strict: bool = True,
        strategy: Strategy | None = None,
        projection: Projection | None = None,
        jit_compile: bool = False,
        sparing: bool = False,
        updated: UpdatedVariables | None = None,
    ):
        self.model, self.loss = model, loss
        self.restricted = layers is not None
        self.projects = projection is not None
        self.sparing = sparing
        self.updated = updated or UpdatedVariables(model)
        self._queries = queries or self
        self._kept: dict[Hashable, Any] = {}
        self._strategy, self._jit_compile = strategy, jit_compile
        self.spec = batch_spec(like)
        self.capturing = Capturing(
            model,
            loss,
            self.spec,
            layers,
            strict,
            projection,
            sparing,
            self.updated,
        )
        self.covered_variables = self.capturing.variables

    @property
    def _position(self) -> tuple:
        """The type of the last argument of steps that project, if these do."""
        return () if not self.projects else (POSITION,)

    def traced(self, step: Callable, *more_specs, axis: int | None):
        """Compiles a step, spread over the strategy's replicas.

        Args:
            step: `(data, ...)`.
            more_specs: the types of its other arguments.
            axis: the examples' axis in the results; None if the results are
                sums over them, which one device makes alone.
        """
        if axis is not None:
            step = spread(step, self._strategy, axis)
        # The signature keeps one trace, with the batch size open, for all.
        signature = (self.spec, *more_specs)
        return compile_step(step, signature, self._jit_compile)

    @functools.cached_property
    def captured(self):
        """`data -> Compact`: gradients, their factors in compact form."""
        return self.traced(self.capturing.capture_compact, axis=0)

    @functools.cached_property
    def sketched(self):
        """`(data, position) -> factors`, those of the sketches."""

        def step(data, position):
            return self.capturing.factors(data, (position,))

        return self.traced(step, POSITION, axis=0)

    @functools.cached_property
    def features(self):
        """`(data, position) -> ([n, dim], ...), [n, ...]`: sketches, numbers.

        Sketches are rows, one for each group where a projection keeps these
        apart. The numbers are those that the loss has beside itself.
        """

        def step(data, position):
            captured = self.capturing.capture_equal(data)
            sketches = self.capturing.project(captured.factors, (position,))
            (numbers,) = captured.numbers
            return tuple(flat.rows((group,)) for group in sketches), numbers

        return self.traced(step, POSITION, axis=0)

    @functools.cached_property
    def feature_products(self):
        """`(data, rows [m, dim], rate, position) -> rate · [m, n]`."""

        def step(data, rows, rate, position):
            captured = self.capturing.capture_equal(data)
            sketches = self.capturing.project(captured.factors, (position,))
            products = tf.matmul(rows, flat.rows(sketches), transpose_b=True)
            return tf.cast(rate, products.dtype) * products

        dtype = tf.nest.flatten(self.capturing.structure.factors)[-1].dtype
        rows = tf.TensorSpec([None, None], dtype)
        return self.traced(step, rows, RATE, POSITION, axis=-1)

    def kept(self, name: Hashable, make: Callable[[], Any]) -> Any:
        """A step of another module, made when it is first asked for."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]

    def query_factors(self, data, *position) -> tuple:
        """The factors of queries that `products` takes."""
        if not self.projects:
            return self.captured(data).factors
        return self.sketched(data, *position)

    @functools.cached_property
    def variables(self) -> tuple[tuple[keras.Variable, ...], ...]:
        """The variables of each group of factors, in the order of `rows`.

        A variable that the model does not use has no gradient and is left
        out.
        """
        known, positions = (
            self.covered_variables,
            self._traced_factors.positions,
        )
        return tuple(
            tuple(known[position] for position in group) for group in positions
        )

    @property
    def _traced_factors(self):
        """The gradients in the trace of `captured`: shapes without numbers."""
        return self.captured.get_concrete_function().structured_outputs

    @property
    def _traced_sketches(self) -> tuple:
        """The sketches in a trace of theirs."""
        return self.sketched.get_concrete_function().structured_outputs

    @functools.cached_property
    def rows(self):
        """`(data, rate) -> rate · [n, p]`, each example's whole gradient."""

        def step(data, rate):
            rows = flat.rows(self.capturing.capture(data).factors)
            return tf.cast(rate, rows.dtype) * rows

        return self.traced(step, RATE, axis=0)

    @functools.cached_property
    def products(self):
        """`(data, queries, rate) -> rate · [m, n]` inner products.

        `queries` are the compact factors of `m` examples.
        """

        def step(data, queries, rate, *position):
            factors = self.capturing.weighted_factors(data, position)
            compact = self.capturing.compact(factors)
            shares = [
                algebra.inner(query, own)
                for query, own in zip(queries, compact, strict=True)
            ]
            return scaled_sum(rate, shares)

        specs = self.query_specs
        return self.traced(step, specs, RATE, *self._position, axis=-1)

    @functools.cached_property
    def along(self):
        """`(data, directions, rate) -> rate · [m, n]` products with vectors.

        `directions` are dense, as `flat.directions` cuts them out of rows;
        they may be anything that a gradient can be multiplied by.
        """

        def step(data, directions, rate):
            factors = self.capturing.capture_equal(data).factors
            shares = [
                algebra.inner(direction, own)
                for direction, own in zip(directions, factors, strict=True)
            ]
            return scaled_sum(rate, shares)

        return self.traced(step, self.direction_specs, RATE, axis=-1)

    @functools.cached_property
    def contractions(self):
        """`(data, directions, rate) -> rate · [1, n]`, one query for all."""

        def step(data, directions, rate, *position):
            factors = self.capturing.weighted_factors(data, position)
            shares = [
                algebra.contract(own, direction)
                for own, direction in zip(factors, directions, strict=True)
            ]
            return scaled_sum(rate, shares)[tf.newaxis, :]

        totals = self._queries.totals.get_concrete_function()
        specs = specs_of(totals.structured_outputs)
        return self.traced(step, specs, RATE, *self._position, axis=-1)

    @functools.cached_property
    def totals(self):
        """`data -> directions`, the examples' summed gradients."""

        def step(data, *position):
            factors = self.capturing.factors(data, position)
            return tuple(map(algebra.total, factors))

        return self.traced(step, *self._position, axis=None)

    @functools.cached_property
    def squared_norms(self):
        """`(data, rate) -> rate · [n]` squared lengths of the gradients."""

        def step(data, rate, *position):
            plain, weighted, shares = self.capturing.capture_weighted(data)
            projected = self.capturing.project(plain, position)
            if len(projected) == len(shares):
                norms = map(algebra.squared_norm, projected)
                parts = [
                    norm if share is None else tf.cast(share, norm.dtype) * norm
                    for norm, share in zip(norms, shares, strict=True)
                ]
            elif all(share is None for share in shares):
                parts = list(map(algebra.squared_norm, projected))
            else:  # a single sketch of all groups
                (own,) = projected
                (other,) = self.capturing.project(weighted, position)
                pairs = zip(own.parts, other.parts, strict=True)
                parts = [tf.reduce_sum(a * b, axis=1) for a, b in pairs]
            return scaled_sum(rate, parts)

        return self.traced(step, RATE, *self._position, axis=-1)

    @functools.cached_property
    def weighted_norms(self):
        """`(data, weights, rate) -> rate · [n]` lengths under a diagonal.

        `weights` are a flat vector for each variable, in the groups of
        `variables`.
        """

        def step(data, weights, rate):
            factors = self.capturing.capture_equal(data).factors
            shares = [
                algebra.weighted_norm(own, vectors)
                for own, vectors in zip(factors, weights, strict=True)
            ]
            return scaled_sum(rate, shares)

        return self.traced(step, self.diagonal_specs, RATE, axis=-1)

    @property
    def diagonal_specs(self) -> tuple:
        """The types of a diagonal's vectors, as `weighted_norms` takes them."""
        factors = self._traced_factors.factors
        return flat.vector_specs(self.variables, factors)

    @property
    def direction_specs(self) -> tuple:
        """The types of directions, as `along` takes them."""
        factors = self._traced_factors.factors
        return flat.direction_specs(self.variables, factors)

    @property
    def for_queries(self) -> GradientFunctions:
        """The steps that make the factors of queries."""
        return self._queries

    @property
    def query_specs(self) -> tuple:
        """The types of queries' factors, as `products` takes them."""
        return self._queries.factor_specs

    @property
    def factor_specs(self) -> tuple:
        """The shapes and dtypes of compact factors, `[None, ...]`."""
        if self.projects:
            return specs_of(self._traced_sketches)
        return specs_of(self._traced_factors.factors)

    @property
    def factor_bytes(self) -> int:
        """The size in memory of one example's compact factors."""
        return sum(
            spec.shape[1:].num_elements() * spec.dtype.size
            for spec in tf.nest.flatten(self.factor_specs)
        )

    def work(self, sparing: bool) -> algebra.Work:
        """Memory and multiplications for an example in a form of its factors.

        Args:
            sparing: whether in the smallest form.
        """
        return self._traced_factors.works[sparing]


def kind_of(data: Any) -> str:
    """A text that is the same for batches that can share a compiled step."""
    return repr(batch_spec(data))


def batch_spec(data: Any) -> Any:
    """The types of a batch's parts, for any number of examples."""
    return tf.nest.map_structure(_open_batch, data)


RATE = tf.TensorSpec([], tf.float32)
POSITION = tf.TensorSpec([], tf.int32)


def scaled_sum(rate: tf.Tensor, shares: list[tf.Tensor]) -> tf.Tensor:
    """The sum over the layers times a rate, in the precision of the model."""
    total = tf.add_n(shares)
    return tf.cast(rate, total.dtype) * total


def specs_of(structure: Any) -> Any:
    """The types of the tensors in a trace's results."""
    return tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype), structure
    )


def _open_batch(leaf: Any) -> tf.TensorSpec:
    """The type of one part of a batch, for any number of examples."""
    tensor = tf.convert_to_tensor(leaf)
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
