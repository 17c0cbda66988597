"""The gradients that a training step sums up, example by example.

The loss that Keras trains on is `Σ_i b_i ℓ_i`; these are the `b_i ∇ℓ_i`, with
the batch's own weights, masks and classes. They are of training mode, as the
real step's are: Dropout draws what it will draw, and its seeds are put back.
What `mode.apart` keeps out of training mode is inference mode's.

Synopsis:

    gradients = StepGradients(model, batch_spec(data))

    @tf.function
    def step(data):
        factors = gradients.of(data)
        for variable, gradient in gradients.total(factors): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.placement import check_loss_of_outputs, place
from keras_tracin.losses.per_example import (
    batch_shares,
    check_no_activation_losses,
)
from keras_tracin.trace.mode import apart, training_mode


class StepGradients:
    """The gradients `b_i ∇ℓ(w, z_i)` of batches.

    Args:
        model: a built and compiled model.
        spec: the types of a batch's parts, its size left open.
        class_weight: the one that `fit` is given.

    Attributes:
        kept_out: the layers that stay in inference mode.

    Raises:
        ValueError: if the model is not compiled, or computes its loss by a
            `compute_loss` of its own.
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
        self._groups: tuple = ()
        self.kept_out = apart(model, self._placement.sites)

    def of(self, data: Any) -> tuple:
        """Factors of a whole batch, to be called inside a `tf.function`.

        Raises:
            ValueError: if layers add losses computed from their inputs.
        """
        others = self._model.non_trainable_variables
        before = [tf.identity(v.value) for v in others]
        with training_mode(self.kept_out):
            found = capture(
                self._model,
                self._shares,
                triple(data),
                self._placement,
                training=True,
            )
        for v, value in zip(others, before, strict=True):
            v.assign(value)
        check_no_activation_losses(self._model)
        known = self._placement.variables
        self._groups = tuple(
            tuple(known[at] for at in group) for group in found.positions
        )
        return found.factors

    def total(self, factors: tuple) -> Iterator[tuple[Any, tf.Tensor]]:
        """Each variable with its summed gradient, flat; after `of`."""
        for each, variables in zip(factors, self._groups, strict=True):
            yield from zip(variables, algebra.total(each), strict=True)


def triple(data: Any) -> tuple[Any, Any, Any]:
    """`(x, y, sample_weight)`, the last None where there is none."""
    x, y, *weight = data
    return x, y, weight[0] if weight else None
