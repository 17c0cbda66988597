"""Refuses layers for which an example has no gradient of its own.

Synopsis:

    check_examples_apart(model)  # for any method
    check_differentiable(model)  # for those that take gradients
    check_call(layer, args, kwargs)  # the same, for a single call
"""

from __future__ import annotations

from typing import Any

import keras

from keras_tracin.gradients.rules.embedding import is_reverse
from keras_tracin.gradients.rules.registry import present

_REVERSIBLE = present("ReversibleEmbedding")


def check_examples_apart(model: keras.Model) -> None:
    """Refuses layers that carry state from one batch to the next.

    Raises:
        ValueError: naming a recurrent layer with `stateful=True`.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.RNN) and layer.stateful:
            raise ValueError(
                f"Layer '{_path(layer)}' ({type(layer).__name__}) is stateful: "
                "what it makes of an example depends on the batch before, so "
                "examples cannot be told apart. Received `stateful=True`, "
                "expected `stateful=False`, with which every example begins "
                "at the initial state. Build the same model so, with an open "
                "batch size; the weights of a run fit it."
            )


def check_differentiable(model: keras.Model) -> None:
    """Refuses layers whose backward pass is not the gradient of their weights.

    In float8, TensorFlow returns the next values of the scales in place of
    their gradients, and the backward pass rounds and clips gradients by scales
    that were fitted to whole batches.

    Raises:
        ValueError: naming a layer that is quantized to float8.
    """
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) == "float8":
            raise ValueError(
                f"Layer '{_path(layer)}' ({type(layer).__name__}) is quantized "
                "to float8: its backward pass rounds gradients by scales that "
                "were fitted to whole batches, so an example has no gradient "
                "of its own. Received the quantization mode 'float8', "
                "expected none, 'int8' or 'int4'. Its weights are kept in "
                "full: build the same model without `quantize`, copy kernels "
                "and biases into it, and pass that."
            )


def check_call(
    layer: keras.Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Refuses a call that stops gradients.

    Raises:
        ValueError: naming a quantized embedding that projects back by
            integers, which have no gradient.
    """
    if not isinstance(layer, _REVERSIBLE) or not is_reverse(args, kwargs):
        return
    if layer.quantization_mode and getattr(layer, "inputs_quantizer", None):
        raise ValueError(
            f"Layer '{_path(layer)}' ({type(layer).__name__}), quantized to "
            f"{layer.quantization_mode}, projects back (`reverse=True`) by "
            "rounding what goes into it, and Keras takes no gradient through "
            "that: no layer before it has one. Received an "
            "`activation_quantizer`, expected None: quantize this layer with "
            "`keras.quantizers.Int8QuantizationConfig("
            "activation_quantizer=None)`, or not at all."
        )


def _path(layer: keras.Layer) -> str:
    return layer.path or layer.name
