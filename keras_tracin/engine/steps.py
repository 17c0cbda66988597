"""Compiled steps: from a batch to factors, products and norms.

Each step is traced once, with the batch dimension left open, so that batches
of any size run without another trace.

Synopsis:

    functions = GradientFunctions(model, loss, like=batch, layers=None)
    captured = functions.captured(batch.data)       # compact factors
    norms = functions.squared_norms(batch.data, rate)  # [n]
    scores = functions.products(batch.data, captured.factors, rate)  # [m, n]
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.distribution import Strategy, spread
from keras_tracin.engine.updated import UpdatedVariables, scale, unequal_shares
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import flat
from keras_tracin.gradients.capture import Captured, PerExampleLoss, capture
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.placement import place
from keras_tracin.gradients.rules.registry import attributes
from keras_tracin.losses.per_example import check_no_activation_losses
from keras_tracin.projection import Projection, project


class GradientFunctions:
    """The compiled gradient steps of one model, loss and kind of batch.

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
        strategy: where to run; each replica works on a share of a batch.
        projection: replaces gradients by sketches of them, in all steps but
            `captured`, `rows` and `along`. These steps then take one more
            argument at their end: the checkpoint's position.
        jit_compile: whether XLA compiles the steps, anew for each batch size.
        sparing: whether factors are held in the form that takes the least
            memory, in place of the one that is multiplied fastest.
        updated: what each variable counts at the checkpoints that are visited,
            in `products`, `contractions` and `squared_norms`. By default each
            counts one.
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
        self._updated = updated or UpdatedVariables(model)
        self.sparing = sparing
        self._work: dict[bool, algebra.Work] = {}
        self._queries = queries or self
        self._model, self._loss = model, loss
        self._strict = strict
        self._strategy = strategy
        self._projection = projection
        self._jit_compile = jit_compile
        self._spec = batch_spec(like)
        self._restricted = layers is not None
        x, y, *weight = self._spec
        with self._updated.trainable():
            self._placement = place(
                model,
                x,
                layers,
                loss=loss,
                y=y,
                sample_weight=weight[0] if weight else None,
            )

    def _capture(self, data) -> Captured:
        x, y, *weight = data
        batch = (x, y, weight[0] if weight else None)
        with self._updated.trainable():
            captured = capture(self._model, self._loss, batch, self._placement)
        if self._strict:
            check_no_activation_losses(self._model)
        return self._updated.apart(captured, self._placement.variables)

    def _equal(self, captured: Captured) -> Captured:
        """The same, if every variable in it counts one."""
        counts = self._updated.counts(captured, self._placement.variables)
        if any(count is not None for count in counts):
            raise ValueError(unequal_shares("This way to score"))
        return captured

    def _project(self, factors: tuple, position: tuple) -> tuple:
        if self._projection is None:
            return factors
        return project(self._projection, factors, *position)

    def _factors(self, data, position: tuple) -> tuple:
        """The gradients' factors, or those of their sketches."""
        return self._project(self._capture(data).factors, position)

    def _counted(self, data, position: tuple) -> tuple:
        """The same, with every variable times what it counts."""
        return self._project(self._both(data)[1], position)

    def _both(self, data) -> tuple[tuple, tuple, list]:
        """The gradients' factors, these times their counts, the counts."""
        captured = self._capture(data)
        counts = self._updated.counts(captured, self._placement.variables)
        pairs = zip(captured.factors, counts, strict=True)
        scaled = tuple(scale(factors, count) for factors, count in pairs)
        return captured.factors, scaled, counts

    def _compact(self, factors: tuple) -> tuple:
        return tuple(algebra.compact(f, self.sparing) for f in factors)

    @property
    def _position(self) -> tuple:
        """The type of the last argument of steps that project."""
        return () if self._projection is None else (_POSITION,)

    def _traced(self, step: Callable, *more_specs, axis: int | None):
        """Compiles a step, spread over the strategy's replicas.

        Args:
            step: `(data, ...)`.
            more_specs: the types of its other arguments.
            axis: that of the examples in its results; None if the results are
                sums over them, which one device makes alone.
        """
        if axis is not None:
            step = spread(step, self._strategy, axis)
        # The signature keeps one trace, with the batch size open, for all.
        signature = (self._spec, *more_specs)
        return compile_step(step, self._jit_compile, signature)

    @functools.cached_property
    def captured(self):
        """`data -> Captured`, its factors in compact form."""

        def step(data):
            found = self._capture(data)
            for sparing in (False, True):  # shapes, that are known now
                shares = [algebra.work(f, sparing) for f in found.factors]
                self._work[sparing] = sum(shares, start=algebra.Work(0))
            return dataclasses.replace(
                found, factors=self._compact(found.factors)
            )

        return self._traced(step, axis=0)

    @functools.cached_property
    def sketched(self):
        """`(data, position) -> factors`, those of the sketches."""
        return self._traced(
            lambda data, position: self._factors(data, (position,)),
            _POSITION,
            axis=0,
        )

    @functools.cached_property
    def sketched_with_values(self):
        """`(data, position) -> factors, values [n]`: sketches and losses."""

        def step(data, position):
            found = self._equal(self._capture(data))
            assert self._projection is not None
            return project(
                self._projection, found.factors, position
            ), found.losses

        return self._traced(step, _POSITION, axis=0)

    def query_factors(self, data, *position) -> tuple:
        """What `products` wants to know of queries."""
        if self._projection is None:
            return self.captured(data).factors
        return self.sketched(data, *position)

    def sketches(self, projection: Projection):
        """A step `(data, position) -> [n, dim]` by any projection."""

        def step(data, position):
            found = self._equal(self._capture(data)).factors
            return projection.sketch(found, position)

        return self._traced(step, _POSITION, axis=0)

    def sketches_and_products(self, projection: Projection):
        """Sketches, and exact products with `m` queries, of the same pass.

        A step `(data, queries, rate, position) -> [n, dim], rate · [n, m]`.
        """

        def step(data, queries, rate, position):
            found = self._equal(self._capture(data)).factors
            compact = self._compact(found)
            shares = [
                algebra.inner(query, factors)
                for query, factors in zip(queries, compact, strict=True)
            ]
            scores = tf.transpose(_scaled_sum(rate, shares))
            return projection.sketch(found, position), scores

        specs = self._queries.factor_specs
        return self._traced(step, specs, _RATE, _POSITION, axis=0)

    def sketches_at(
        self, projection: Projection, weights: Sequence[Sequence[tf.Tensor]]
    ):
        """A step `data -> [c, n, dim]`: sketches at `c` sets of weights.

        One call makes all of them, and the model's own weights are neither
        used nor changed. One device does the work: queries are few.

        Args:
            projection: what makes the sketches; the position of a set of
                weights is its place in `weights`.
            weights: values for each of `model.weights`, held as tensors.
        """
        known = self._model.weights
        specs = [tf.TensorSpec(v.shape, v.dtype) for v in known]

        # Traced once, however many sets of weights there are.
        @tf.function(
            autograph=False, input_signature=(self._spec, specs, _POSITION)
        )
        def at(data, values, position):
            mapping = list(zip(known, values, strict=True))
            with (
                keras.StatelessScope(state_mapping=mapping),
                _statistics_made_anew(self._model),
            ):
                found = self._capture(data).factors
            return projection.sketch(found, position)

        def step(data):
            return tf.stack(
                [
                    at(data, list(values), np.int32(position))
                    for position, values in enumerate(weights)
                ]
            )

        return self._traced(step, axis=None)

    @functools.cached_property
    def variables(self) -> tuple[tuple[keras.Variable, ...], ...]:
        """Those that each group of factors is of, in the order of `rows`.

        A variable that the model does not use has no gradient and is left
        out.
        """
        known = self._placement.variables
        found = self.captured.get_concrete_function().structured_outputs
        return tuple(
            tuple(known[position] for position in group)
            for group in found.positions
        )

    @functools.cached_property
    def rows(self):
        """`(data, rate) -> rate · [n, p]`, each example's whole gradient."""

        def step(data, rate):
            rows = flat.rows(self._capture(data).factors)
            return tf.cast(rate, rows.dtype) * rows

        return self._traced(step, _RATE, axis=0)

    @functools.cached_property
    def products(self):
        """`(data, queries, rate) -> rate · [m, n]` inner products.

        `queries` are the compact factors of `m` examples.
        """

        def step(data, queries, rate, *position):
            found = self._counted(data, position)
            compact = self._compact(found)
            shares = [
                algebra.inner(query, factors)
                for query, factors in zip(queries, compact, strict=True)
            ]
            return _scaled_sum(rate, shares)

        specs = self._queries.factor_specs
        return self._traced(step, specs, _RATE, *self._position, axis=-1)

    @functools.cached_property
    def along(self):
        """`(data, directions, rate) -> rate · [m, n]` products with vectors.

        `directions` are dense, as `flat.directions` cuts them out of rows;
        they may be anything that a gradient can be multiplied by.
        """

        def step(data, directions, rate):
            found = self._equal(self._capture(data)).factors
            shares = [
                algebra.inner(direction, factors)
                for direction, factors in zip(directions, found, strict=True)
            ]
            return _scaled_sum(rate, shares)

        found = self.captured.get_concrete_function().structured_outputs
        specs = flat.direction_specs(self.variables, found.factors)
        return self._traced(step, specs, _RATE, axis=-1)

    @functools.cached_property
    def contractions(self):
        """`(data, directions, rate) -> rate · [1, n]`, one query for all."""

        def step(data, directions, rate, *position):
            found = self._counted(data, position)
            shares = [
                algebra.contract(factors, direction)
                for factors, direction in zip(found, directions, strict=True)
            ]
            return _scaled_sum(rate, shares)[tf.newaxis, :]

        totals = self._queries.totals.get_concrete_function()
        specs = _specs(totals.structured_outputs)
        return self._traced(step, specs, _RATE, *self._position, axis=-1)

    @functools.cached_property
    def totals(self):
        """`data -> directions`, the examples' summed gradients."""

        def step(data, *position):
            found = self._factors(data, position)
            return tuple(algebra.total(factors) for factors in found)

        return self._traced(step, *self._position, axis=None)

    @functools.cached_property
    def squared_norms(self):
        """`(data, rate) -> rate · [n]` squared lengths of the gradients."""

        def step(data, rate, *position):
            found, scaled, counts = self._both(data)
            projected = self._project(found, position)
            if len(projected) == len(counts):
                norms = map(algebra.squared_norm, projected)
                pairs = zip(norms, counts, strict=True)
                shares = [
                    norm if count is None else tf.cast(count, norm.dtype) * norm
                    for norm, count in pairs
                ]
            elif all(count is None for count in counts):
                shares = list(map(algebra.squared_norm, projected))
            else:  # one sketch of all groups
                (one,), (other,) = projected, self._project(scaled, position)
                pairs = zip(one.parts, other.parts, strict=True)
                shares = [tf.reduce_sum(a * b, axis=1) for a, b in pairs]
            return _scaled_sum(rate, shares)

        return self._traced(step, _RATE, *self._position, axis=-1)

    @functools.cached_property
    def weighted_norms(self):
        """`(data, weights, rate) -> rate · [n]` lengths under a diagonal.

        `weights` are a flat vector for each variable, in the groups of
        `variables`.
        """

        def step(data, weights, rate):
            found = self._equal(self._capture(data)).factors
            shares = [
                algebra.weighted_norm(factors, vectors)
                for factors, vectors in zip(found, weights, strict=True)
            ]
            return _scaled_sum(rate, shares)

        found = self.captured.get_concrete_function().structured_outputs
        specs = flat.vector_specs(self.variables, found.factors)
        return self._traced(step, specs, _RATE, axis=-1)

    @property
    def model(self) -> keras.Model:
        """The model that is differentiated."""
        return self._model

    @property
    def loss(self) -> PerExampleLoss:
        """What is differentiated: `(y, y_pred, sample_weight) -> [n]`."""
        return self._loss

    @property
    def covered_variables(self) -> tuple[keras.Variable, ...]:
        """Those that gradients are taken by, as `Captured.positions` counts."""
        return self._placement.variables

    @property
    def checked_variables(self) -> list[keras.Variable]:
        """Those that gradients should be of: all, or those of `layers=`."""
        if self._restricted:
            return list(self._placement.variables)
        with self._updated.trainable():
            return list(self._model.trainable_variables)

    @property
    def takes_lengths(self) -> bool:
        """Whether lengths of gradients are at hand, and factors are not."""
        at_hand = vars(self)
        return (
            "squared_norms" in at_hand
            and "captured" not in at_hand
            and self._projection is None
            and not self._updated.differ(self._placement.variables)
        )

    def has_loops(self, name: str) -> bool:
        """Whether something in the trace of a step loops."""
        graph = getattr(self, name).get_concrete_function().graph
        return any(op.type.endswith("While") for op in graph.get_operations())

    @property
    def factor_specs(self) -> tuple:
        """The shapes and dtypes of compact factors, `[None, ...]`."""
        if self._projection is not None:
            concrete = self.sketched.get_concrete_function()
            return _specs(concrete.structured_outputs)
        concrete = self.captured.get_concrete_function()
        return _specs(concrete.structured_outputs.factors)

    @property
    def factor_bytes(self) -> int:
        """The size in memory of one example's compact factors."""
        return sum(
            spec.shape[1:].num_elements() * spec.dtype.size
            for spec in tf.nest.flatten(self.factor_specs)
        )

    def work(self, sparing: bool) -> algebra.Work:
        """What an example takes in this form of its factors, or the other."""
        self.captured.get_concrete_function()
        return self._work[sparing]

    def losses(self, data) -> tf.Tensor:
        """The per-example losses `[n]`, computed eagerly.

        Raises:
            LabelsOutsideClasses: if the loss cannot take a label.
        """
        x, y, *weight = tf.nest.map_structure(tf.convert_to_tensor, data)
        y_pred = self._model(x, training=False)
        return self._loss(y, y_pred, weight[0] if weight else None)

    def first_not_finite(self, data) -> tuple[str, np.ndarray] | None:
        """The first layer with a NaN or infinite gradient, and the rows."""
        found = self.captured(data)
        named = zip(found.names, found.factors, strict=True)
        for name, factors in [("the loss", found.losses), *named]:
            for tensor in tf.nest.flatten(factors):
                if tensor.dtype.is_floating:
                    flat = np.isfinite(tensor.numpy()).reshape(len(tensor), -1)
                    rows = np.flatnonzero(~flat.all(axis=1))
                    if len(rows):
                        return name, rows
        return None


@contextlib.contextmanager
def _statistics_made_anew(model: keras.Model) -> Iterator[None]:
    """Within it, Normalization layers use the weights they are lent.

    They keep tensors that were computed from their own.
    """
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                kept = {name: getattr(layer, name) for name in _STATISTICS}
                stack.enter_context(attributes(layer, kept))
                layer.finalize_state()
        yield


def kind_of(data: Any) -> str:
    """What batches must have in common to share a compiled step."""
    return repr(batch_spec(data))


def batch_spec(data: Any) -> Any:
    """The types of a batch's parts, for any number of examples."""
    return tf.nest.map_structure(_open_batch, data)


_STATISTICS = ("mean", "variance")
_RATE = tf.TensorSpec([], tf.float32)
_POSITION = tf.TensorSpec([], tf.int32)


def _scaled_sum(rate: tf.Tensor, shares: list[tf.Tensor]) -> tf.Tensor:
    """The layers' shares together; of the model's precision, float64 too."""
    total = tf.add_n(shares)
    return tf.cast(rate, total.dtype) * total


def _specs(structure: Any) -> Any:
    return tf.nest.map_structure(
        lambda t: tf.TensorSpec(t.shape, t.dtype), structure
    )


def _open_batch(leaf: Any) -> tf.TensorSpec:
    """The type of one part of a batch, for any number of examples."""
    tensor = tf.convert_to_tensor(leaf)
    return tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype)
