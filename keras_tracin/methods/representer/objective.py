"""The objective of a last layer, and its derivatives.

    J(W) = (1/n) Σ_i ℓ_i(φ_i) + λ ‖W‖²,  φ_i = f_i W

over cached representations f_i, in float64. The loss and its derivatives by
the logits φ come from TensorFlow, for whatever loss the model was compiled
with; the rest are matrix products, block by block.

Synopsis:

    loss = LogitLoss(head, labels, model)       # compiled, for any examples
    objective = Objective(loss, train, l2=1e-3)
    value, gradient = objective.value_and_gradient(weights)   # [f, k]
    objective.logit_gradients(weights)                        # ∂ℓ/∂φ [n, k]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.methods.representer.features import Representations
from keras_tracin.methods.representer.head import Head

_BLOCK_BYTES = 8 * 2**20  # of a block of representations or logits

Losses = Callable[[tf.Tensor, tuple], tf.Tensor]  # (logits, labels) -> [n]


class LogitLoss:
    """The per-example loss as a function of logits, compiled.

    It is computed in float64, unless the loss holds float32 constants.

    Args:
        head: the layer that makes the logits.
        labels: `(y,)` or `(y, sample_weight)` of some examples.
        model: the model, for its compiled loss.
        loss: used in place of the compiled loss.

    Attributes:
        num_outputs: the number of logits, k.
        sum_and_gradients: `(logits [n, k], labels) -> Σ ℓ_i, ∂ℓ_i/∂φ_i
            [n, k]`.

    Raises:
        ValueError: if the loss has no gradient by the logits.
    """

    def __init__(
        self, head: Head, labels: tuple, model: keras.Model, loss: Any = None
    ):
        self.num_outputs = head.weights.shape[1]
        self._logits = tf.TensorSpec([None, self.num_outputs], tf.float64)
        self._labels = batch_spec(labels)
        self._losses, self.sum_and_gradients = _differentiable(
            head, model, loss, (self._logits, self._labels)
        )

    @functools.cached_property
    def gradient_changes(self):
        """`(logits, change, labels) -> [n, k]`, `∂²ℓ/∂φ²` times the change."""

        def step(logits, change, labels):
            with tf.GradientTape() as outer:
                outer.watch(logits)
                _, gradients = _sum_and_gradients(self._losses, logits, labels)
                along = tf.reduce_sum(gradients * change)
            return outer.gradient(along, logits, unconnected_gradients="zero")

        return compile_step(step, (self._logits, self._logits, self._labels))

    @functools.cached_property
    def curvatures(self):
        """`(logits, labels) -> [n, k, k]`, `∂²ℓ/∂φ²` of each example."""

        def step(logits, labels):
            with tf.GradientTape() as outer:
                outer.watch(logits)
                _, gradients = _sum_and_gradients(self._losses, logits, labels)
            return outer.batch_jacobian(
                gradients, logits, unconnected_gradients="zero"
            )

        return compile_step(step, (self._logits, self._labels))


class Objective:
    """The regularised loss of a last layer over cached representations.

    Args:
        loss: the loss as a function of logits.
        train: the examples.
        l2: λ.

    Attributes:
        train: the examples.
        l2: λ.
    """

    def __init__(self, loss: LogitLoss, train: Representations, l2: float):
        self.train, self.l2, self._loss = train, l2, loss
        widest = max(train.features.shape[1], loss.num_outputs)
        self._block = max(1, _BLOCK_BYTES // (8 * widest))

    def value_and_gradient(
        self, weights: np.ndarray
    ) -> tuple[float, np.ndarray]:
        """J and ∇J at `weights [f, k]`."""
        total, gradient = 0.0, np.zeros_like(weights)
        for block in self._blocks():
            losses, by_logits = self._loss.sum_and_gradients(
                block.features @ weights, block.labels
            )
            total += float(losses)
            gradient += block.features.T @ by_logits.numpy()
        n = len(self.train)
        value = total / n + self.l2 * np.sum(weights**2)
        return value, gradient / n + 2 * self.l2 * weights

    def logit_gradients(self, weights: np.ndarray) -> np.ndarray:
        """∂ℓ_i/∂φ_i of every example, `[n, k]`."""
        compute = self._loss.sum_and_gradients
        return np.concatenate(
            [
                compute(block.features @ weights, block.labels)[1].numpy()
                for block in self._blocks()
            ]
        )

    def hessian_product(
        self, weights: np.ndarray, direction: np.ndarray
    ) -> np.ndarray:
        """∇²J at `weights` times `direction`, both `[f, k]`."""
        product = np.zeros_like(direction)
        for block in self._blocks():
            changes = self._loss.gradient_changes(
                block.features @ weights,
                block.features @ direction,
                block.labels,
            )
            product += block.features.T @ changes.numpy()
        return product / len(self.train) + 2 * self.l2 * direction

    def curvatures(
        self, weights: np.ndarray
    ) -> Iterator[tuple[Representations, np.ndarray]]:
        """Blocks of examples, each with its `∂²ℓ_i/∂φ_i²` `[b, k, k]`."""
        for block in self._blocks():
            logits = block.features @ weights
            yield block, self._loss.curvatures(logits, block.labels).numpy()

    def _blocks(self) -> Iterator[Representations]:
        for start in range(0, len(self.train), self._block):
            yield self.train.rows(slice(start, start + self._block))


def _sum_and_gradients(losses: Losses, logits, labels):
    """Σ ℓ_i and every ∂ℓ_i/∂φ_i `[n, k]`."""
    with tf.GradientTape() as tape:
        tape.watch(logits)
        values = losses(logits, labels)
    gradients = tape.gradient(values, logits)
    if gradients is None:
        raise ValueError(
            "The loss has no gradient with respect to the logits, which "
            f"representer values are made of. {_REMEDY}"
        )
    return tf.reduce_sum(values), gradients


_REMEDY = (
    "Pass a loss that is made of differentiable TensorFlow or Keras "
    "operations as `loss=`."
)


def _differentiable(head, model, loss, signature) -> tuple[Losses, Any]:
    """The losses, and the compiled step to their sum and gradients.

    They are computed in float64. A loss that holds float32 constants cannot
    be; it is given float32.
    """
    for dtype in ("float64", None):
        losses = _losses(head, model, loss, dtype)
        step = compile_step(
            functools.partial(_sum_and_gradients, losses), signature
        )
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
