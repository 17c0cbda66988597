"""Tries a rule on its layer, against the layer's own backward pass.

Whether a rule fits a class of another package depends on the release that is
installed. So it is not taken on trust: a few examples are tried, once for each
layer, and if they disagree the layer has no rule.

Synopsis:

    @register_by_name(
        "package.module.Scale",
        variables=("scale",),
        holds=on_examples(lambda layer: ((normal(2, 3, layer.width),), {})),
    )
    def scale(layer, use): ...
"""

from __future__ import annotations

import concurrent.futures
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients import precision
from keras_tracin.gradients.factors import materialize
from keras_tracin.gradients.rules.registry import (
    LayerUse,
    Rule,
    covered_variables,
)

Arguments = tuple[tuple[Any, ...], dict[str, Any]]

# Relative to the largest entry of a gradient.
_TOLERANCE, _OF_HALF_PRECISION = 1e-3, 0.1


def normal(*shape: int) -> tf.Tensor:
    """Random numbers, the same in every call."""
    values = np.random.default_rng(0).normal(size=shape)
    return tf.constant(values, tf.float32)


def on_examples(
    *arguments: Callable[[Any], Arguments],
) -> Callable[[keras.Layer, Rule], bool]:
    """Decides whether a rule agrees with the backward pass of a layer.

    Args:
        arguments: functions of the layer, each of which returns positional
            and keyword arguments of a call, for a few examples.
    """

    def agrees(layer: keras.Layer, rule: Rule) -> bool:
        return all(_agree(layer, rule, *make(layer)) for make in arguments)

    return once_for_each_layer(agrees)


def once_for_each_layer(agrees: Callable[..., bool]) -> Callable[..., bool]:
    """Remembers what a trial of a layer says; False where it fails.

    Args:
        agrees: function of the layer, and of more.
    """
    verdicts: weakref.WeakKeyDictionary[keras.Layer, bool] = (
        weakref.WeakKeyDictionary()
    )

    def verdict(layer: keras.Layer, *more: Any) -> bool:
        if layer not in verdicts:
            # In another thread, TensorFlow is eager even while this one traces.
            with concurrent.futures.ThreadPoolExecutor(1) as executor:
                tried = executor.submit(agrees, layer, *more)
            verdicts[layer] = tried.exception() is None and tried.result()
        return verdicts[layer]

    return verdict


def _agree(layer: keras.Layer, rule: Rule, args: Any, kwargs: Any) -> bool:
    variables = covered_variables(layer, rule)
    watched: list[tf.Tensor] = []
    with tf.GradientTape(persistent=True) as tape:

        def watch(tensor):
            if not tf.is_tensor(tensor) or not tensor.dtype.is_floating:
                return tensor
            probe = tf.identity(tensor)
            tape.watch(probe)
            watched.append(probe)
            return probe

        if rule.watching is None:
            outputs = tf.nest.map_structure(watch, layer(*args, **kwargs))
        else:
            with rule.watching(layer, watch):
                outputs = layer(*args, **kwargs)
        losses = _losses(outputs)  # [n]
        examples = tf.unstack(losses)
    expected = [
        tape.gradient(loss, [v.value for v in variables]) for loss in examples
    ]
    use = args, kwargs, tuple(tape.gradient(losses, watched)), tuple(watched)
    actual = {
        id(variable): rows
        for group, factors in rule.factors(
            layer, LayerUse(*precision.widen(use))
        )
        for variable, rows in zip(
            group, materialize(factors).parts, strict=True
        )
    }
    half = precision.last_place(layer.compute_dtype) > 1e-6
    return all(
        _is_close(
            actual[id(variable)],
            [tf.reshape(tf.convert_to_tensor(g), [-1]) for g in gradients],
            _OF_HALF_PRECISION if half else _TOLERANCE,
        )
        for variable, *gradients in zip(variables, *expected, strict=True)
    )


def _losses(outputs: Any) -> tf.Tensor:
    """A loss of each example, linear in its outputs, `[n]`."""
    terms = []
    for leaf in tf.nest.flatten(outputs):
        if tf.is_tensor(leaf) and leaf.dtype.is_floating:
            shares = tf.cast(leaf, tf.float32) * normal(*leaf.shape)
            terms.append(tf.reduce_sum(shares, list(range(1, leaf.shape.rank))))
    return tf.add_n(terms)


def _is_close(rows: Any, expected: Any, tolerance: float) -> bool:
    rows, expected = np.asarray(rows), np.asarray(expected)
    largest = np.abs(expected).max()
    error = np.abs(rows - expected).max()
    return bool(largest > 0 and error <= tolerance * largest)
