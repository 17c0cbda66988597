"""The gradient of a few examples by a plain `tf.GradientTape`.

It uses nothing of the capture of per-example gradients: the model is called,
its losses are summed, and TensorFlow differentiates. The sum of captured
gradients is compared with it.

Synopsis:

    plain = PlainGradient(model, loss, variables, spec)
    plain(data, counts)      # one tensor per variable: Σ counts_i · ∇ℓ_i
    with perturb_weights(model):      # weights changed in their last digits
        plain(data, counts)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients import precision
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.sites import without_rematerialization
from keras_tracin.models.state import preserved, value_of

_HIGH = 2.0**10  # size of the gradient at the output, in float16
_LOWER, _ATTEMPTS = 2.0**8, 4


class PlainGradient:
    """Computes sums of examples' gradients, each by one backward pass.

    Args:
        model: a built model; it runs in inference mode.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        variables: variables to differentiate by.
        spec: types of a batch, if the pass is to be traced, which is faster
            for a model with loops.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: Callable[[Any, Any, Any], tf.Tensor],
        variables: Sequence[keras.Variable],
        spec: Any = None,
    ):
        self._model, self._loss = model, loss
        self._values = [value_of(variable) for variable in variables]
        self._gradient: Callable = self._of
        # Scales for float16 need eager execution.
        if spec is not None and not precision.computes_in_float16(model):
            counts = tf.TensorSpec([None], tf.float32)
            self._gradient = compile_step(self._of, (spec, counts))

    def __call__(self, data: Any, counts: Sequence[float]) -> list[tf.Tensor]:
        """The gradient of `Σ counts_i · ℓ_i` by each variable.

        Args:
            data: `(x, y)` or `(x, y, sample_weight)` of `n` examples.
            counts: weights of the examples in the sum, `[n]`.
        """
        data = tf.nest.map_structure(tf.convert_to_tensor, data)
        return self._gradient(data, tf.constant(counts, tf.float32))

    def _of(self, data: Any, counts: tf.Tensor) -> list[tf.Tensor]:
        x, y, *weight = data
        scaled = precision.computes_in_float16(self._model)
        with (
            tf.GradientTape(persistent=scaled) as tape,
            without_rematerialization(self._model),
        ):
            y_pred = self._model(x, training=False)
            if scaled:
                y_pred = precision.widen(y_pred)
            losses = precision.widen(
                self._loss(y, y_pred, weight[0] if weight else None)
            )
            total = tf.reduce_sum(tf.cast(counts, losses.dtype) * losses)
        if scaled:
            return self._in_range(tape, total, y_pred)
        return self._dense(tape.gradient(total, self._values))

    def _dense(self, grads: Sequence[Any]) -> list[tf.Tensor]:
        """Gradients in float32 or wider; zeros for unused variables."""
        return [
            tf.zeros(value.shape, tf.float32)
            if grad is None
            else precision.widen(tf.convert_to_tensor(grad))
            for value, grad in zip(self._values, grads, strict=True)
        ]

    def _in_range(self, tape, total, y_pred) -> list[tf.Tensor]:
        """Gradients with losses scaled so that float16 does not underflow."""
        ends = [
            end
            for output in tf.nest.flatten(y_pred)
            for end in (output, getattr(output, "_keras_logits", None))
            if end is not None and end.dtype.is_floating
        ]
        output_grads = [
            grad for grad in tape.gradient(total, ends) if grad is not None
        ]
        largest = max(
            (float(tf.reduce_max(tf.abs(grad))) for grad in output_grads),
            default=0.0,
        )
        scale = 1.0
        if np.isfinite(largest) and largest > 0:
            scale = 2.0 ** np.floor(np.log2(_HIGH / largest))
        grads: list[tf.Tensor] = []
        for _ in range(_ATTEMPTS):
            weight = tf.cast(scale, total.dtype)
            grads = self._dense(
                tape.gradient(total, self._values, output_gradients=weight)
            )
            if all(bool(tf.reduce_all(tf.math.is_finite(g))) for g in grads):
                break
            scale /= _LOWER
        return [grad / tf.cast(scale, grad.dtype) for grad in grads]


@contextlib.contextmanager
def perturb_weights(model: keras.Model, seed: int = 0) -> Iterator[None]:
    """For a `with` block, perturbs trainable weights in their last digits.

    The change of a result shows the size of its rounding errors: usually small,
    larger where ties are broken or nearly equal numbers are subtracted.
    """
    rng = np.random.default_rng(seed)
    unit = precision.coarsest_place(model)
    with preserved(model):
        for variable in model.trainable_variables:
            value = tf.convert_to_tensor(value_of(variable))
            if value.dtype.is_floating:
                noise = rng.uniform(-unit, unit, value.shape)
                variable.assign(value * tf.cast(1.0 + noise, value.dtype))
        yield
