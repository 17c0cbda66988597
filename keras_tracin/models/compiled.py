"""The loss that a model was compiled with.

Keras keeps what `compile` was given in private attributes. This module is the
only one that reads them.

Synopsis:

    compiled = compiled_loss(model)
    if compiled is not None:                 # None before `compile(loss=...)`
        compiled.loss, compiled.weights      # as `compile` was given them
    losses_of(model, loss=None)              # the losses alone, in a list
    trains_on_compiled_loss(model)           # False for some own train steps
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class CompiledLoss:
    """The loss of a compiled model.

    Attributes:
        loss: `compile(loss=...)`: a name, a function, a Keras loss, or a
            structure of these.
        weights: `compile(loss_weights=...)`, or None.
    """

    loss: Any
    weights: Any


def compiled_loss(model: keras.Model) -> CompiledLoss | None:
    """The loss that a model was compiled with; None if there is none."""
    compiled: Any = getattr(model, "_compile_loss", None)
    if compiled is None:
        return None
    return CompiledLoss(compiled._user_loss, compiled._user_loss_weights)


def losses_of(model: keras.Model, loss: Any = None) -> list[Any]:
    """The losses of all outputs that have one.

    Args:
        model: its compiled losses are returned if there is no `loss`.
        loss: anything `compile(loss=...)` takes.
    """
    if loss is None:
        compiled = compiled_loss(model)
        loss = None if compiled is None else compiled.loss
    return [leaf for leaf in tf.nest.flatten(loss) if leaf is not None]


# What code names that takes the compiled loss; `train_step` is that of `super`.
_NAMES = {
    "compute_loss",
    "_compute_loss",
    "compiled_loss",
    "_compile_loss",
    "loss",
    "train_step",
}


def trains_on_compiled_loss(model: keras.Model) -> bool:
    """Whether a model's `train_step` names the compiled loss.

    That is so of Keras's own, and of one whose code, or that of a method which
    it names, has `compute_loss`, `self.loss` or `super().train_step`. It may
    add other losses to it. Code that cannot be read counts as if it did.
    """
    step = vars(model).get("train_step", type(model).train_step)
    return _names_loss(step, type(model), set())


def _names_loss(function: Any, kind: type, seen: set[Any]) -> bool:
    function = inspect.unwrap(getattr(function, "python_function", function))
    code = getattr(function, "__code__", None)
    if code is None:
        return True
    seen.add(code)
    names = set(_names_in(code))
    if names & _NAMES:
        return True
    methods = [getattr(kind, name, None) for name in names]
    return any(
        _names_loss(method, kind, seen)
        for method in methods
        if isinstance(method, types.FunctionType)
        and not method.__module__.startswith("keras.")
        and method.__code__ not in seen
    )


def _names_in(code: types.CodeType) -> Iterator[str]:
    """The names in some code, and in functions within it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)
