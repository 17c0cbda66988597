"""Gradients of the loss, or of model and loss, one example at a time.

A layer's rule covers the effect of its variables through the layer's outputs. A
loss may also read variables itself, or tensors that the model stores and does
not return. Then the loss alone, or model and loss together, are repeated for
every example.

Synopsis:

    direct = of_loss(model, loss, y, y_pred, weight, variables, ends)
    whole = of_objective(model, loss, batch, variables, ends)
    direct.parts  # [n, p] for each variable
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import precision
from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.rules.fallback import (
    gradients_by_example,
    has_examples,
)

Loss = Callable[[Any, Any, Any], tf.Tensor]
_NOTES = ("_keras_mask", "_keras_logits")


@dataclasses.dataclass(frozen=True)
class Ends:
    """The losses to differentiate.

    Attributes:
        losses: per-example losses `[n]`.
        output_grads: gradients `[n, ...]` of the losses at the model's outputs,
            if float16 needs scaling; otherwise None.
        nested: True if model or loss have control flow or call functions.
    """

    losses: tf.Tensor
    output_grads: list[tf.Tensor] | None
    nested: bool


def of_loss(
    model: keras.Model,
    loss: Loss,
    y: Any,
    y_pred: Any,
    sample_weight: Any,
    variables: Sequence[keras.Variable],
    ends: Ends,
) -> DenseGradients:
    """Gradients of the loss by variables that it reads, for fixed outputs."""

    def losses(y, y_pred, sample_weight):
        return loss(y, y_pred, sample_weight)

    arguments = y, y_pred, sample_weight
    return _by_example(model, losses, arguments, variables, ends, "the loss")


def of_objective(
    model: keras.Model,
    loss: Loss,
    batch: tuple[Any, Any, Any],
    variables: Sequence[keras.Variable],
    ends: Ends,
    training: bool = False,
) -> DenseGradients:
    """Gradients of model and loss, run for each example alone."""

    def losses(x, y, sample_weight):
        y_pred = model(x, training=training)
        if precision.computes_in_float16(model):
            y_pred = precision.widen(y_pred)
        return loss(y, y_pred, sample_weight)

    what = f"model '{model.name}' with its loss"
    return _by_example(model, losses, batch, variables, ends, what)


def _by_example(
    model: keras.Model,
    losses: Callable[..., tf.Tensor],
    arguments: tuple[Any, ...],
    variables: Sequence[keras.Variable],
    ends: Ends,
    subject: str,
) -> DenseGradients:
    leaves = tf.nest.flatten(arguments)
    moving = {
        place: _with_notes(leaf)
        for place, leaf in enumerate(leaves)
        if has_examples(leaf)
    }

    def one_example(inputs):
        alone = [
            _batch_of_one(inputs[place]) if place in moving else leaf
            for place, leaf in enumerate(leaves)
        ]
        values = losses(*tf.nest.pack_sequence_as(arguments, alone))
        return precision.widen(values)

    def gradients(grads: tf.Tensor) -> DenseGradients:
        return gradients_by_example(
            model,
            one_example,
            moving,
            [tf.expand_dims(grads, 1)],
            variables,
            nested=ends.nested,
            subject=subject,
        )

    if ends.output_grads is None:
        return precision.widen(gradients(tf.ones_like(ends.losses)))

    def attempt(scale):
        return gradients(tf.cast(scale, ends.losses.dtype)).parts

    parts = precision.in_range(attempt, precision.HIGH, ends.output_grads)
    return DenseGradients(tuple(parts))


def _with_notes(tensor: tf.Tensor) -> dict[str, tf.Tensor]:
    notes = {note: getattr(tensor, note, None) for note in _NOTES}
    moving = {
        note: value for note, value in notes.items() if has_examples(value)
    }
    return {"tensor": tensor, **moving}


def _batch_of_one(parts: dict[str, tf.Tensor]) -> tf.Tensor:
    notes = {name: tf.expand_dims(part, 0) for name, part in parts.items()}
    tensor = notes.pop("tensor")
    for name, note in notes.items():
        setattr(tensor, name, note)
    return tensor
