"""The objective of a last layer, and its derivatives.

    J(W) = (1/n) Σ_i ℓ_i(φ_i) + λ ‖W‖²,  φ_i = f_i W

over cached representations f_i, in float64. The loss and its derivatives with
respect to the logits φ come from TensorFlow, for whatever loss the model was
compiled with; the rest are matrix products, block by block.

Synopsis:

    objective = Objective(head, train, model, loss=None).with_l2(1e-3)
    value, gradient = objective.value_and_gradient(weights)   # [f, k]
    objective.slopes(weights)                                 # ∂ℓ/∂φ [n, k]
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import batch_spec
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.methods.representer.features import Representations
from keras_tracin.methods.representer.head import Head

_BLOCK_BYTES = 8 * 2**20  # of a block of representations or logits

Losses = Callable[[tf.Tensor, tuple], tf.Tensor]  # (logits, labels) -> [n]


class Objective:
    """The regularised loss of a last layer over cached representations.

    Args:
        head: the layer.
        train: the examples.
        model: the model, for its compiled loss.
        loss: used in place of the compiled loss.

    Attributes:
        train: the examples.
        l2: λ; 0 until `with_l2`.

    Raises:
        ValueError: if the loss has no gradient with respect to the logits.
    """

    def __init__(
        self,
        head: Head,
        train: Representations,
        model: keras.Model,
        loss: Any,
    ):
        self.train, self.l2 = train, 0.0
        outputs = head.weights.shape[1]
        logits = tf.TensorSpec([None, outputs], tf.float64)
        labels = batch_spec(train.rows(slice(0, 1)).labels)
        self._logits, self._labels = logits, labels
        self._losses, self._slopes = _differentiable(
            head, model, loss, (logits, labels)
        )
        widest = max(train.features.shape[1], outputs)
        self._block = max(1, _BLOCK_BYTES // (8 * widest))

    def with_l2(self, l2: float) -> Objective:
        """The same with this λ; the compiled steps are shared."""
        other = copy.copy(self)
        other.l2 = l2
        return other

    def value_and_gradient(
        self, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """J and ∇J at `weights [f, k]`."""
        total, gradient = 0.0, np.zeros_like(weights)
        for block in self._blocks():
            losses, slopes = self._slopes(
                block.features @ weights, block.labels
            )
            total += float(losses)
            gradient += block.features.T @ slopes.numpy()
        n = len(self.train)
        value = total / n + self.l2 * np.sum(weights**2)
        return value, gradient / n + 2 * self.l2 * weights

    def slopes(self, weights: np.ndarray) -> np.ndarray:
        """∂ℓ_i/∂φ_i of every example, `[n, k]`."""
        found = [
            self._slopes(block.features @ weights, block.labels)[1].numpy()
            for block in self._blocks()
        ]
        return np.concatenate(found)

    def hessian_product(
        self, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """∇²J at `weights` times `direction`, both `[f, k]`."""
        product = np.zeros_like(direction)
        for block in self._blocks():
            curved = self._slope_changes(
                block.features @ weights,
                block.features @ direction,
                block.labels,
            )
            product += block.features.T @ curved.numpy()
        return product / len(self.train) + 2 * self.l2 * direction

    def curvatures(
        self, weights: np.ndarray
    ) -> Iterator[tuple[Representations, np.ndarray]]:
        """Blocks of examples, each with its `∂²ℓ_i/∂φ_i²` `[b, k, k]`."""
        for block in self._blocks():
            found = self._curvatures(block.features @ weights, block.labels)
            yield block, found.numpy()

    def _blocks(self) -> Iterator[Representations]:
        for start in range(0, len(self.train), self._block):
            yield self.train.rows(slice(start, start + self._block))

    @functools.cached_property
    def _slope_changes(self):
        """`(logits, change, labels) -> [n, k]`, how ∂ℓ/∂φ changes."""

        def step(logits, change, labels):
            with tf.GradientTape() as outer:
                outer.watch(logits)
                _, slopes = _sum_and_slopes(self._losses, logits, labels)
                along = tf.reduce_sum(slopes * change)
            return outer.gradient(along, logits, unconnected_gradients="zero")

        return _traced(step, self._logits, self._logits, self._labels)

    @functools.cached_property
    def _curvatures(self):
        def step(logits, labels):
            with tf.GradientTape() as outer:
                outer.watch(logits)
                _, slopes = _sum_and_slopes(self._losses, logits, labels)
            return outer.batch_jacobian(
                slopes, logits, unconnected_gradients="zero"
            )

        return _traced(step, self._logits, self._labels)


def _traced(step: Callable, *signature):
    return tf.function(step, autograph=False, input_signature=signature)


def _sum_and_slopes(losses: Losses, logits, labels):
    """Σ ℓ_i and every ∂ℓ_i/∂φ_i `[n, k]`."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses(logits, labels)
    slopes = tape.gradient(values, logits)
    if slopes is None:
        raise ValueError(
            "The loss has no gradient with respect to the logits, which "
            f"representer values are made of. {_REMEDY}"
        )
    return tf.reduce_sum(values), slopes


_REMEDY = (
    "Pass a loss that is made of differentiable TensorFlow or Keras "
    "operations as `loss=`."
)


def _differentiable(head, model, loss, signature) -> tuple[Losses, Any]:
    """The losses, and the compiled step to their sum and slopes.

    They are computed in float64. A loss that holds float32 constants cannot
    be; it is given float32.
    """
    for dtype in ("float64", None):
        losses = _losses(head, model, loss, dtype)
        step = _traced(functools.partial(_sum_and_slopes, losses), *signature)
        try:
            step.get_concrete_function()
        except Exception as error:
            if dtype is not None:
                continue
            if isinstance(error, ValueError):
                raise
            raise ValueError(
                "The loss cannot be differentiated with respect to the "
                f"logits: {type(error).__name__}: {error} {_REMEDY}"
            ) from error
        return losses, step
    raise AssertionError  # the last attempt returns or raises


def _losses(head: Head, model, loss, dtype: str | None) -> Losses:
    per_example = per_example_loss(model, loss, dtype=dtype)

    def losses(logits, labels):
        y, *sample_weight = labels
        y_pred = head.prediction(
            logits if dtype else tf.cast(logits, keras.config.floatx())
        )
        values = per_example(
            y, y_pred, sample_weight[0] if sample_weight else None
        )
        return tf.cast(values, tf.float64)

    return losses
