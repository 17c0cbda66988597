"""The loss that a model was compiled with.

Keras keeps what `compile` was given in private attributes. This module is the
only one that reads them.

Synopsis:

    compiled = compiled_loss(model)
    if compiled is not None:                 # None before `compile(loss=...)`
        compiled.loss, compiled.weights      # as `compile` was given them
    losses_of(model, loss=None)              # the losses alone, in a list
"""

from __future__ import annotations

import dataclasses
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
