"""The output f of a model in which TRAK linearises it, and the loss of f.

TRAK linearises a model in an output f of its own, not in the loss, and lets the
loss come in through its derivative there: f is the margin log(p / (1 - p)) of
the label's probability in a classification, the prediction itself in a
regression (Park et al. 2023, sec. 3). In a sequence, f and the derivative are
means over its positions, weighted as the loss weighs them. LoGra's f is the
loss (Choe et al. 2024), whose derivative is one.

Synopsis:

    output = model_output(model, loss=None, kind=None)
    f = output.value(y, y_pred, sample_weight)          # [n]
    numbers = output.numbers(y, y_pred, sample_weight)  # [n, 3]
    numbers[:, PULL]                                    # -∂ℓ/∂f of each
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.losses import loss_terms
from keras_tracin.losses.expected_outputs import ExpectedOutputs
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss
from keras_tracin.losses.query_losses import negated_terms

WEIGHT, PULL, HELP = range(3)  # columns of `ModelOutput.numbers`


@dataclasses.dataclass(frozen=True)
class ModelOutput:
    """An output of a model.

    Attributes:
        kind: "margin", "prediction" or "loss".
        value: f, `(y, y_pred, sample_weight) -> [n]`; the weight of a whole
            example is left out, but for a loss.
        numbers: `(y, y_pred, sample_weight) -> [n, 3]`. The example's weight
            among others; the negative derivative of its weighted loss by f, by
            which training pulls f up; and the benefit for a query of a unit
            rise of its f, its weight for a margin, which should rise, or the
            pull in a regression.
    """

    kind: str
    value: PerExampleLoss
    numbers: Callable[[Any, Any, Any], tf.Tensor]


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
        kind: "margin", "prediction" or "loss"; by default the loss decides
            between the first two.
        x: inputs of some examples, whose outputs show whether they are logits
            or probabilities, as in `query_value`.

    Raises:
        ValueError: if the loss does not decide, for an unknown `kind`, if
            margins do not follow from the model's outputs, or (when called)
            if the model does not predict one thing for each example, or for
            each position of it.
    """
    expected = ExpectedOutputs.of(model, loss)
    if kind is None:
        kind = _kind_of(expected)
    if kind == "margin":
        return _margin(model, loss, x, alone=expected.choice == "sides")
    if kind == "prediction":
        return _prediction(per_example_loss(model, loss))
    if kind == "loss":
        return _loss(per_example_loss(model, loss))
    raise ValueError(
        "`output` should be 'margin', 'prediction', 'loss' or None. Received: "
        f"{kind!r}."
    )


def _margin(model: keras.Model, loss: Any, x: Any, alone: bool) -> ModelOutput:
    """log(p / (1 - p)), with the logistic loss of Park et al."""
    negated = negated_terms(model, "margin", loss, x)

    def terms_of(y, y_pred, sample_weight):
        shape = _shape_of(y_pred)
        if not shape or (alone and shape[-1] != 1):
            raise ValueError(
                "TRAK needs a model that chooses one class for each example, "
                "or for each position of it. "
                f"Received: predictions of shape {('n', *shape)}"
                f"{' under a binary loss' * alone}. Attribute a model "
                "with a single choice, or use `TracIn`."
            )
        return negated(y, y_pred, sample_weight)

    def value(y, y_pred, sample_weight=None):
        terms = terms_of(y, y_pred, sample_weight)
        return -_mean(terms.weighted, terms.weights)

    def numbers(y, y_pred, sample_weight=None):
        terms = terms_of(y, y_pred, sample_weight)
        values = tf.math.divide_no_nan(terms.weighted, terms.weights)
        rest = _mean(tf.sigmoid(values) * terms.weights, terms.weights)
        ones = dataclasses.replace(terms, weighted=terms.weights)
        weights = loss_terms.per_example(ones)
        return tf.stack([weights, weights * rest, weights], axis=1)

    return ModelOutput("margin", value, numbers)


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

    def numbers(y, y_pred, sample_weight=None):
        f = loss_terms.to_wide(tf.reshape(y_pred, [-1, 1]))
        with tf.GradientTape() as tape:
            tape.watch(f)
            values = loss(tf.reshape(y, [-1, 1]), f, sample_weight)
        pull = -tf.convert_to_tensor(tape.gradient(values, f))[:, 0]
        weights = tf.ones_like(pull)
        if sample_weight is not None:
            weights = tf.cast(sample_weight, pull.dtype)
            weights = tf.reshape(weights, tf.shape(pull))
        return tf.stack([weights, pull, pull], axis=1)

    return ModelOutput("prediction", value, numbers)


def _loss(loss: PerExampleLoss) -> ModelOutput:
    def numbers(y, y_pred, sample_weight=None):
        ones = tf.ones_like(loss(y, y_pred, sample_weight))
        return tf.stack([ones] * 3, axis=1)

    return ModelOutput("loss", loss, numbers)


def _mean(weighted: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Weighted means over the positions of each example, `[n]`."""
    positions = list(range(1, weights.shape.rank))
    return tf.math.divide_no_nan(
        tf.reduce_sum(weighted, positions), tf.reduce_sum(weights, positions)
    )


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
        "`output='prediction'`, or `output='loss'`."
    )
