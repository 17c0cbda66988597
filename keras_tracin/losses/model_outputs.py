"""The output f of a model in which TRAK linearises it, and the loss of f.

TRAK linearises a model in an output f of its own, not in the loss, and lets the
loss come in through its derivative there: f is the margin log(p / (1 - p)) of
the label's probability in a classification, the prediction itself in a
regression (Park et al. 2023, sec. 3).

Synopsis:

    output = model_output(model, loss=None, kind=None)
    f = output.value(y, y_pred, sample_weight)     # [n]
    output.pull(y, f, sample_weight)               # -∂ℓ/∂f [n]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.losses.expected_outputs import ExpectedOutputs
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss
from keras_tracin.losses.query_losses import query_value


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """An output of a model.

    Attributes:
        kind: "margin" or "prediction".
        value: f, `(y, y_pred, sample_weight) -> [n]`; weights are ignored.
        pull: `(y, f, sample_weight) -> [n]`, the negative derivative of the
            example's weighted loss by f: training pulls f up by it.
        help: `(y, f, sample_weight) -> [n]`, the benefit for a query of a unit
            rise of its f: its weight for a margin, which should rise, or the
            pull in a regression.
    """

    kind: str
    value: PerExampleLoss
    pull: Callable[[Any, tf.Tensor, Any], np.ndarray]
    help: Callable[[Any, tf.Tensor, Any], np.ndarray]


def model_output(
    model: keras.Model,
    loss: Any = None,
    kind: str | None = None,
    x: Any = None,
) -> ModelOutput:
    """The output that goes with a model's loss.

    Args:
        model: a Keras model.
        loss: a loss in place of the compiled one.
        kind: "margin" or "prediction"; by default the loss decides.
        x: inputs of some examples, whose outputs show whether they are logits
            or probabilities, as in `query_value`.

    Raises:
        ValueError: if the loss does not decide, for an unknown `kind`, if
            margins do not follow from the model's outputs, or (when called)
            if the model does not predict one thing for each example.
    """
    expected = ExpectedOutputs.of(model, loss)
    if kind is None:
        kind = _kind_of(expected)
    if kind == "margin":
        return _margin(model, loss, x, alone=expected.choice == "sides")
    if kind == "prediction":
        return _prediction(per_example_loss(model, loss))
    raise ValueError(
        "`output` should be 'margin', 'prediction' or None. Received: "
        f"{kind!r}."
    )


def sample_weights(sample_weight: Any, like: tf.Tensor) -> np.ndarray:
    """Weights `[n]`, ones where there are none."""
    if sample_weight is None:
        return np.ones(len(like), like.dtype.as_numpy_dtype)
    weights = np.asarray(sample_weight, like.dtype.as_numpy_dtype)
    return weights.reshape(len(like), -1).mean(axis=1)


def _margin(model: keras.Model, loss: Any, x: Any, alone: bool) -> ModelOutput:
    """log(p / (1 - p)), with the logistic loss of Park et al."""
    negated = query_value(model, "margin", loss, x)

    def value(y, y_pred, sample_weight=None):
        shape = _shape_of(y_pred)
        if len(shape) != 1 or (alone and shape[0] != 1):
            raise ValueError(
                "TRAK needs a model that chooses one class for each example. "
                f"Received: predictions of shape {('n', *shape)}"
                f"{' under a binary loss' * alone}. Attribute a model "
                "with a single choice, or use `TracIn`."
            )
        return -negated(y, y_pred, None)

    def pull(y, f, sample_weight=None):
        weights = sample_weights(sample_weight, f)
        return weights * tf.sigmoid(-f).numpy()

    def weight(y, f, sample_weight=None):
        return sample_weights(sample_weight, f)

    return ModelOutput("margin", value, pull, help=weight)


def _prediction(loss: PerExampleLoss) -> ModelOutput:
    def value(y, y_pred, sample_weight=None):
        shape = _shape_of(y_pred)
        if any(size != 1 for size in shape):
            raise ValueError(
                "TRAK needs a model that predicts one number for each "
                f"example. Received: predictions of shape {('n', *shape)}. "
                "Attribute one output at a time, or use `TracIn`."
            )
        return tf.reshape(y_pred, [-1])

    def pull(y, f, sample_weight=None):
        f = tf.reshape(f, [-1, 1])
        with tf.GradientTape() as tape:
            tape.watch(f)
            values = loss(tf.reshape(y, [-1, 1]), f, sample_weight)
        return -tape.gradient(values, f).numpy()[:, 0]

    return ModelOutput("prediction", value, pull, help=pull)


def _shape_of(y_pred: Any) -> tuple:
    if tf.nest.is_nested(y_pred):
        raise ValueError(
            "TRAK needs a model with one output. Received: "
            f"{len(tf.nest.flatten(y_pred))} outputs."
        )
    return tuple(y_pred.shape[1:])


def _kind_of(expected: ExpectedOutputs) -> str:
    if expected.is_cross_entropy:
        return "margin"
    if expected.choice == "numbers":
        return "prediction"
    raise ValueError(
        "TRAK differentiates the margin of the label in a classification, the "
        f"prediction in a regression. Received the loss {expected.name!r}, "
        "which does not tell which; pass `output='margin'` or "
        "`output='prediction'`."
    )
