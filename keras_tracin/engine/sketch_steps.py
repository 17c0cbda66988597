"""Compiled steps that sketch gradients by any projection.

Synopsis:

    sketch = sketches(functions, kt.TensorSketch(1024))
    sketch(batch.data, np.int32(0))          # [n, dim]
    sketch = sketches(functions, kt.TensorSketch(1024), column=PULL)
    sketch(batch.data, np.int32(0))          # [n, dim], [n]
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import (
    POSITION,
    RATE,
    GradientFunctions,
    scaled_sum,
)
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.rules.registry import attributes
from keras_tracin.projection import Projection

_STATISTICS = ("mean", "variance")


def sketches(
    functions: GradientFunctions,
    projection: Projection,
    column: int | None = None,
):
    """A step `(data, position) -> [n, dim]`, or with numbers `[n]` beside.

    Args:
        functions: the steps of the model, loss and kind of batch.
        projection: makes the sketches.
        column: which of the numbers that the loss has beside itself are
            returned too, if any.
    """

    def step(data, position):
        captured = functions.capturing.capture_equal(data)
        sketch = projection.sketch(captured.factors, position)
        if column is None:
            return sketch
        (numbers,) = captured.numbers
        return sketch, numbers[:, column]

    return functions.traced(step, POSITION, axis=0)


def sketches_and_products(
    functions: GradientFunctions,
    queries: GradientFunctions,
    projection: Projection,
    along: bool = False,
):
    """Sketches, and exact products with `m` queries, of the same pass.

    A step `(data, queries, rate, position) -> [n, dim], rate · [n, m]`.

    Args:
        functions: the steps of the model, loss and kind of batch.
        queries: the steps that make the factors of the queries.
        projection: makes the sketches.
        along: whether it takes dense directions in place of the factors, as
            `GradientFunctions.along` does.
    """

    def step(data, queries, rate, position):
        factors = functions.capturing.capture_equal(data).factors
        compact = factors if along else functions.capturing.compact(factors)
        shares = [
            algebra.inner(query, own)
            for query, own in zip(queries, compact, strict=True)
        ]
        scores = tf.transpose(scaled_sum(rate, shares))
        return projection.sketch(factors, position), scores

    specs = functions.direction_specs if along else queries.factor_specs
    return functions.traced(step, specs, RATE, POSITION, axis=0)


def sketches_at(
    functions: GradientFunctions,
    projection: Projection,
    weights: Sequence[Sequence[tf.Tensor]],
    column: int | None = None,
):
    """A step `data -> [c, n, dim]`: sketches at `c` sets of weights.

    One call makes all of them, and the model's own weights are neither used
    nor changed. One device does the work: queries are few.

    Args:
        functions: the steps of the model, loss and kind of batch.
        projection: makes the sketches; the position of a set of weights is
            its place in `weights`.
        weights: values for each of `model.weights`, held as tensors.
        column: which of the numbers that the loss has beside itself multiply
            the sketches, if any.
    """
    model = functions.model
    known = model.weights
    specs = [tf.TensorSpec(v.shape, v.dtype) for v in known]

    # Traced once, however many sets of weights there are.
    @tf.function(
        autograph=False, input_signature=(functions.spec, specs, POSITION)
    )
    def sketch_at(data, values, position):
        mapping = list(zip(known, values, strict=True))
        with (
            keras.StatelessScope(state_mapping=mapping),
            _fresh_statistics(model),
        ):
            captured = functions.capturing.capture_anew(data)
        sketch = projection.sketch(captured.factors, position)
        if column is None:
            return sketch
        (numbers,) = captured.numbers
        return sketch * tf.cast(numbers[:, column, tf.newaxis], sketch.dtype)

    def step(data):
        return tf.stack(
            [
                sketch_at(data, list(values), np.int32(position))
                for position, values in enumerate(weights)
            ]
        )

    return functions.traced(step, axis=None)


@contextlib.contextmanager
def _fresh_statistics(model: keras.Model) -> Iterator[None]:
    """Lets Normalization layers use the weights they are lent in a block.

    They keep tensors that were computed from their own.
    """
    with contextlib.ExitStack() as stack:
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.Normalization):
                kept = {name: getattr(layer, name) for name in _STATISTICS}
                stack.enter_context(attributes(layer, kept))
                layer.finalize_state()
        yield
