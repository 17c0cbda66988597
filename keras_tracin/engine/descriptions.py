"""Losses and options in words that JSON can hold, and in a program's words.

Synopsis:

    describe_losses(model, None, "margin", {0: 2.0})
    # {"loss": "compiled", "query_loss": "margin", "class_weight": ...}
    in_words({"class": "TensorSketch", "dim": 64})
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.models.descriptions import describe, describe_loss


def describe_losses(
    model: keras.Model,
    loss: Any,
    query_loss: Any,
    class_weight: Mapping[int, float] | None,
) -> dict[str, Any]:
    """Losses and class weights, as JSON.

    Args:
        model: the model, whose compiled loss is described without a `loss`.
        loss: used in place of the compiled loss.
        query_loss: measure of a query's influence.
        class_weight: the `class_weight` given to `fit`.
    """
    return {
        "loss": loss_names("compiled" if loss is None else loss),
        "query_loss": loss_names(query_loss or "loss"),
        "class_weight": {
            str(label): float(weight)
            for label, weight in (class_weight or {}).items()
        },
        "objective": {
            **describe_loss(model, loss),
            "query_loss": describe(query_loss or "loss"),
        },
    }


def loss_names(losses: Any) -> str:
    """Names of losses: the same in every process, unlike their `repr`."""

    def name(loss: Any) -> str:
        if isinstance(loss, str):
            return loss
        for attribute in ("name", "__qualname__"):
            if getattr(loss, attribute, None):
                # Keras numbers losses of the same class anew in each process.
                return re.sub(r"_\d+$", "", str(getattr(loss, attribute)))
        return type(loss).__name__

    return str(tf.nest.map_structure(name, losses))


def in_words(value: Any) -> str:
    """An option as a program would write it.

    >>> in_words({"class": "TensorSketch", "dim": 64})
    'TensorSketch(dim=64)'

    Args:
        value: the option, as JSON.
    """
    if isinstance(value, dict) and "class" in value:
        fields = [f"{k}={in_words(value[k])}" for k in value if k != "class"]
        return f"{value['class']}({', '.join(fields)})"
    return repr(value)
