"""Variables that training uses and that are not among a model's weights.

A layer may hold a `tf.Variable` that Keras does not track, and a loss may read
a temperature or another model. No weights file has their values. So a run notes
digests of them, so that a variable that changed while it was recorded can be
refused.

Synopsis:

    digests_beside(model)  # [("'step' of layer 'decay'", "3f0a..."), ...]
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.models.compiled import losses_of
from keras_tracin.models.state import value_of, variables_of

_DEEPEST = 4  # levels of nested objects to look into


def variables_beside(model: keras.Model) -> list[tuple[str, Any]]:
    """The variables beside `model.weights` that layers hold or the loss reads.

    Those of the loss are looked for in its attributes and closures, and among
    the globals that it names.

    Returns:
        The place of each in words, and the variable; always in the same order.
    """
    known = {id(value_of(variable)) for variable in model.variables}
    beside: dict[int, tuple[str, Any]] = {}

    def add(where: str, variable: Any) -> None:
        key = id(value_of(variable))
        if key not in known:
            beside.setdefault(key, (where, variable))

    for held in variables_of(model):
        if not held.is_seed:
            owner = held.owner.path or held.owner.name
            add(f"'{held.name}' of layer '{owner}'", held.variable)
    for loss in losses_of(model):
        for variable in _referred_by(loss, 0):
            name = getattr(variable, "path", None) or variable.name
            add(f"'{name}', which the loss refers to", variable)
    return list(beside.values())


def digests_beside(model: keras.Model) -> list[tuple[str, str]]:
    """The place of each of these variables, and a digest of its values."""
    return [
        (where, digest_of(variable))
        for where, variable in variables_beside(model)
    ]


def digest_of(variable: Any) -> str:
    """A digest of the present values of a variable."""
    value = np.ascontiguousarray(
        tf.convert_to_tensor(value_of(variable)).numpy()
    )
    content = value.reshape(-1)
    if value.dtype == object:
        content = np.frombuffer(repr(value.tolist()).encode(), np.uint8)
    return hashlib.blake2b(
        content.view(np.uint8).data, digest_size=16
    ).hexdigest()


def _referred_by(value: Any, depth: int) -> Iterator[Any]:
    """The variables that an object refers to."""
    if isinstance(value, keras.Variable | tf.Variable):
        if getattr(value, "_value", value) is not None:
            yield value
    elif isinstance(value, keras.Layer):
        yield from value.variables
    elif isinstance(value, keras.Optimizer | keras.Metric):
        return
    elif depth < _DEEPEST:
        for member in _members(value):
            yield from _referred_by(member, depth + 1)


def _members(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    code = getattr(value, "__code__", None)
    if code is not None:  # a function
        cells = [_content(cell) for cell in value.__closure__ or ()]
        scope = value.__globals__
        named = [scope[name] for name in code.co_names if name in scope]
        # Of what is global, only variables and models: modules hold anything.
        kinds = keras.Variable | tf.Variable | keras.Layer
        globals_read = [value for value in named if isinstance(value, kinds)]
        return [*cells, *(value.__defaults__ or ()), *globals_read]
    if hasattr(value, "__func__"):  # a method
        return [value.__func__, value.__self__]
    is_loss = isinstance(value, keras.losses.Loss)
    return [*vars(value).values(), type(value).call] if is_loss else []


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
