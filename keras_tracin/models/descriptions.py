"""Descriptions of losses, layers and solvers as JSON.

Two processes that run the same program get the same description: it has no
addresses and no paths. It leaves out what a lambda computes and what a closure
holds: those differ in the numbers that they compute, see
`keras_tracin.engine.fingerprint`.

Synopsis:

    describe_loss(model, keras.losses.Huber(delta=5.0))
    # {"class": "Huber", "config": {"delta": 5.0, ...}}
    difference({"loss": {"delta": 5.0}}, {"loss": {"delta": 0.05}})
    # ("loss.delta", 5.0, 0.05)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.models.compiled import CompiledLoss, compiled_loss

# Where a class or a function was imported from differs from one way of
# starting a program to another; Keras numbers names anew in each process.
_PLACES = ("module", "registered_name", "build_config", "name")
_ABSENT = "nothing"
_OF_TRAINING = ("trainable", "dtype", "seed", "batch_shape", "autocast")
_PARTS_OF_WEIGHTS = ("_initializer", "_regularizer", "_constraint")


def describe_loss(model: keras.Model, loss: Any = None) -> Any:
    """The configuration of a loss.

    Args:
        model: its compiled loss, with `loss_weights`, is described if there
            is no `loss`.
        loss: anything `compile(loss=...)` takes.
    """
    if loss is not None:
        return {"loss": _describe_losses(loss)}
    compiled = compiled_loss(model) or CompiledLoss(None, None)
    return {
        "loss": _describe_losses(compiled.loss),
        "loss_weights": describe(compiled.weights),
    }


def describe_layers(model: keras.Model) -> list[Any]:
    """The classes and options of all layers that hold no others.

    Names, inputs and whatever only matters to training are left out.
    """
    layers = []
    for layer in _inside(model):
        holds_others = any(True for _ in _inside(layer))
        if holds_others or isinstance(layer, keras.layers.InputLayer):
            continue
        config = _config_of(layer)
        options = {
            name: config[name]
            for name in config
            if name not in _OF_TRAINING and not name.endswith(_PARTS_OF_WEIGHTS)
        }
        layers.append({"class": type(layer).__name__, **options})
    return layers


def _inside(layer: keras.Layer) -> Iterator[keras.Layer]:
    return iter(layer._flatten_layers(include_self=False))


def describe_optimizer(optimizer: Any) -> Any:
    """The class and options of an optimizer, but for its learning rate."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    description = describe(optimizer)
    if isinstance(description, dict):
        description["config"].pop("learning_rate", None)
    return description


def describe(value: Any) -> Any:
    """A value as JSON: its fields, options and names.

    Args:
        value: numbers, text, containers, a Keras object, a dataclass, a
            function; for anything else, the name of its class.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | tf.Tensor | tf.Variable):
        return _describe_array(np.asarray(value))
    if isinstance(value, Mapping):
        return _describe_mapping(value)
    if isinstance(value, set | frozenset):
        return sorted(str(describe(entry)) for entry in value)
    if isinstance(value, Sequence):
        return [describe(entry) for entry in value]
    if isinstance(value, functools.partial):
        return {
            "function": describe(value.func),
            "arguments": describe([*value.args, dict(value.keywords)]),
        }
    if isinstance(value, type):
        return value.__qualname__
    name = type(value).__qualname__
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: describe(getattr(value, field.name))
            for field in dataclasses.fields(value)
        }
        return {"class": name, **fields}
    if hasattr(value, "get_config"):
        return {"class": name, "config": _config_of(value)}
    return str(getattr(value, "__qualname__", name))


def difference(
    received: Any, expected: Any, name: str = ""
) -> tuple[str, Any, Any] | None:
    """The first entry in which two descriptions differ.

    Returns:
        Its name, what was received and what was expected; None if the two
        are alike.
    """
    if isinstance(received, dict) and isinstance(expected, dict):
        for key in sorted({**received, **expected}):
            first = difference(
                received.get(key, _ABSENT),
                expected.get(key, _ABSENT),
                f"{name}.{key}" if name else key,
            )
            if first is not None:
                return first
        return None
    return None if received == expected else (name, received, expected)


def _describe_losses(losses: Any) -> Any:
    """Losses in whatever structure `compile` takes them."""
    if isinstance(losses, Mapping):
        return {str(key): _describe_losses(losses[key]) for key in losses}
    if isinstance(losses, list | tuple):
        return [_describe_losses(loss) for loss in losses]
    if isinstance(losses, str):
        # Keras has several names for the same.
        return describe(keras.losses.get(losses))
    return describe(losses)


def _config_of(value: Any) -> Any:
    try:
        config = dict(value.get_config())
    except Exception:  # A user's own may say nothing: numbers do.
        config = {}
    config.update(getattr(value, "_fn_kwargs", None) or {})
    function = getattr(value, "fn", None)
    if function is not None:
        # In place of the code of a lambda, which differs with its path.
        config["fn"] = getattr(function, "__qualname__", "")
    return describe(config)


def _describe_mapping(value: Mapping) -> Any:
    if value.get("class_name") == "__lambda__":
        return "<lambda>"
    return {
        str(key): describe(entry)
        for key, entry in value.items()
        if key not in _PLACES
    }


def _describe_array(array: np.ndarray) -> dict[str, Any]:
    content = hashlib.blake2b(
        np.ascontiguousarray(array).tobytes(), digest_size=16
    )
    return {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "digest": content.hexdigest(),
    }
