"""What the last layer of a model receives.

Synopsis:

    encode = LastInput(model, batch.x)
    encode(batch.x)                          # [n, d], or [n, t, d]
"""

from __future__ import annotations

import contextlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import batch_spec, kind_of
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.sites import (
    intercept,
    named_layers,
    without_rematerialization,
)
from keras_tracin.methods.representer.head import first_argument
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.state import preserved


class LastInput:
    """The inputs of the layer with weights that a model calls last.

    Of a classifier these are the features that its last Dense layer reads, of
    a language model the hidden states of its last block, also where the table
    of the vocabulary projects them.

    Args:
        model: a built model.
        x: inputs of some examples, on which the layer is found.
        layer: the layer, by name, path or object, in place of the last one.

    Attributes:
        layer: the layer.

    Raises:
        ValueError: if no layer of the model receives an array of numbers for
            each example.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        layer: str | keras.Layer | None = None,
    ):
        self._model = model
        self._steps: dict[str, Any] = {}
        candidates = (
            [each for each in model._flatten_layers() if _has_weights(each)]
            if layer is None
            else named_layers(model, layer, "layer")
        )
        self.layer = _last_called(model, x, candidates)

    def __call__(self, x: Any) -> np.ndarray:
        """The inputs `[n, ..., d]` for a batch."""
        kind = kind_of(x)
        if kind not in self._steps:
            self._steps[kind] = compile_step(self._step, [batch_spec(x)])
        with exclusive_access, preserved(self._model):
            return self._steps[kind](x).numpy()

    def _step(self, x: Any) -> tf.Tensor:
        received: list[Any] = []

        def record(original, *args, **kwargs):
            received.append(first_argument(args, kwargs))
            return original(*args, **kwargs)

        with (
            without_rematerialization(self._model),
            intercept(self.layer, record),
        ):
            self._model(x, training=False)  # pruned after the layer
        return tf.cast(received[-1], tf.float32)


def _has_weights(layer: keras.Layer) -> bool:
    """Whether a layer has weights of its own, not only in layers inside."""
    return bool(layer._trainable_variables or layer._non_trainable_variables)


@exclusive_access
def _last_called(
    model: keras.Model, x: Any, candidates: list[keras.Layer]
) -> keras.Layer:
    """The last of these layers that receives numbers for each example."""
    count = len(tf.nest.flatten(x)[0])
    called: list[keras.Layer] = []

    def recorder(layer: keras.Layer):
        def record(original, *args, **kwargs):
            received = first_argument(args, kwargs)
            if _is_representation(received, count):
                called.append(layer)
            return original(*args, **kwargs)

        return record

    with contextlib.ExitStack() as stack:
        stack.enter_context(preserved(model))
        for layer in candidates:
            stack.enter_context(intercept(layer, recorder(layer)))
        model(x, training=False)
    if not called:
        raise ValueError(
            f"No layer of the model '{model.name}' receives an array of "
            "numbers for each example, which could stand for it. Pass "
            "`encoder=`, a model or a function of the inputs."
        )
    return called[-1]


def _is_representation(received: Any, count: int) -> bool:
    """Whether it is floats `[n, ..., d]`, and not within a loop of a layer."""
    return (
        tf.is_tensor(received)
        and hasattr(received, "numpy")
        and received.dtype.is_floating
        and received.shape.rank >= 2
        and received.shape[0] == count
    )
