"""Per-example gradients of training steps.

The loss that Keras trains on is `Σ_i b_i ℓ_i`, with weights `b_i` from the
batch's size, masks, sample weights and class weights. This module computes
`b_i ∇ℓ_i` in training mode, as the real step does: Dropout uses the seeds of
the step, which are restored. Layers named by `mode.find_inference_layers` stay
in inference mode.

Synopsis:

    gradients = StepGradients(model, batch_spec(data))

    @tf.function
    def step(data):
        captured = gradients.capture(data)
        for variable, gradient in gradients.total(captured): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import Captured, capture
from keras_tracin.gradients.placement import check_loss_of_outputs, place
from keras_tracin.losses.per_example import (
    batch_shares,
    check_no_activation_losses,
)
from keras_tracin.trace.mode import find_inference_layers, inference_mode


class StepGradients:
    """Computes the gradients `b_i ∇ℓ(w, z_i)` of batches.

    Args:
        model: a built and compiled model.
        spec: `tf.TensorSpec`s of a batch, its size left open.
        class_weight: the `class_weight` given to `fit`.

    Attributes:
        inference_layers: layers that stay in inference mode.

    Raises:
        ValueError: if the model is not compiled, or overrides
            `compute_loss`.
    """

    def __init__(
        self,
        model: keras.Model,
        spec: Any,
        class_weight: Mapping[int, float] | None = None,
    ):
        self._model = model
        self._shares = batch_shares(model, class_weight=class_weight)
        x, y, sample_weight = triple(spec)
        self._placement = place(
            model, x, loss=self._shares, y=y, sample_weight=sample_weight
        )
        check_loss_of_outputs(model, self._shares, spec, "Traces of training")
        self.inference_layers = find_inference_layers(
            model, self._placement.sites
        )

    def capture(self, data: Any) -> Captured:
        """Captures the gradients of a batch; call it in a `tf.function`.

        Raises:
            ValueError: if layers add losses computed from their inputs.
        """
        state = self._model.non_trainable_variables
        values = [tf.identity(v.value) for v in state]
        with inference_mode(self.inference_layers):
            captured = capture(
                self._model,
                self._shares,
                triple(data),
                self._placement,
                training=True,
            )
        for v, value in zip(state, values, strict=True):
            v.assign(value)
        check_no_activation_losses(self._model)
        return captured

    def total(self, captured: Captured) -> Iterator[tuple[Any, tf.Tensor]]:
        """Pairs of a variable and its summed gradient, which is flat."""
        groups = self._placement.groups(captured.positions)
        for variables, factors in zip(groups, captured.factors, strict=True):
            yield from zip(variables, algebra.total(factors), strict=True)


def triple(data: Any) -> tuple[Any, Any, Any]:
    """`(x, y, sample_weight)` of a batch; without weights, None."""
    x, y, *weight = data
    return x, y, weight[0] if weight else None
