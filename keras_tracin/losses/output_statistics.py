"""Numbers of an example's outputs: loss, margin, probability of its label.

They are the example's alone and before its weight, so that they say how the
model sees the label, not how much training made of it. Where an example has
several positions or labels, its numbers are means over those that count,
weighted as the loss weighs them.

Synopsis:

    statistics = output_statistics(model, x, y)
    statistics.names                                # ("loss", "margin", ...)
    values = statistics(y, y_pred, sample_weight)   # each [..., n]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.losses import loss_terms
from keras_tracin.losses.expected_outputs import ExpectedOutputs
from keras_tracin.losses.invalid_labels import LabelsOutsideClasses, Outside
from keras_tracin.losses.loss_terms import Terms, to_wide
from keras_tracin.losses.output_kinds import outputs_of
from keras_tracin.losses.outputs import REMEDY, Outputs, check_consistent
from keras_tracin.losses.query_losses import (
    is_label,
    label_logit,
    labels_and_logits,
)
from keras_tracin.losses.terms_of_outputs import terms_of_outputs
from keras_tracin.models.state import preserved

_SMALLEST = 2.0**-126  # what smaller probabilities are taken for
_LARGEST = 1 - 2.0**-24  # of a sigmoid


class NothingCounts(LabelsOutsideClasses):
    """All positions of some rows are masked, ignored or of weight 0."""

    def explain(self, examples: str) -> str:
        """The message, with the examples in words in place of the rows."""
        return (
            f"No label of {examples} counts: every position is masked, ignored "
            "or of weight 0. Expected one or more that count; leave these "
            "examples out."
        )


@dataclasses.dataclass(frozen=True)
class OutputStatistics:
    """What is measured of the outputs of a model, and how.

    Attributes:
        kind: "classes": a label for each example, of two classes where the
            model has a single output; "labels": several for each example that
            are each right or wrong; "sequences": labels at each position;
            "numbers": a regression.
        single: whether an output is a choice by itself, not one of the
            classes.
        outputs: the kind of the model's outputs.
        evaluate_terms: the compiled loss, position by position.
    """

    kind: str
    single: bool
    outputs: Outputs
    evaluate_terms: Callable[..., list[tuple[Terms, float]]]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the results, in their order.

        - `loss [n]`: the loss.
        - `residual [n]`, of regressions alone: the root of the mean square.
        - `margin [n]`: the logit of the given label less the largest other.
        - `correct [n]`: the share of labels that are predicted.
        - `probability [n]`: that of the given label.
        - `error [n]`: ‖p − y‖, y the given label as a one-hot vector.
        - `given`, the labels: `[n]` of "classes", `[labels, n]` of "labels".
        - `probabilities [classes, n]`, of "labels" `[labels, n]`.
        """
        if self.kind == "numbers":
            return "loss", "residual"
        names = ["loss", "margin", "correct"]
        if self.tells_probabilities:
            names += ["probability", "error"]
        if self.kind != "sequences":
            names += ["given"]
            names += ["probabilities"] * self.tells_probabilities
        return tuple(names)

    @property
    def tells_probabilities(self) -> bool:
        """Whether probabilities follow from the outputs."""
        return self.kind != "numbers" and self.outputs.kind != "values"

    def __call__(
        self, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> tuple[tf.Tensor, ...]:
        """The numbers of a batch, each `[..., n]`, in the order of `names`.

        Args:
            y: labels.
            y_pred: outputs.
            sample_weight: weights; those of whole examples are left out.
        """
        [(terms, _)] = self.evaluate_terms(
            y, y_pred, _weights_of_positions(sample_weight)
        )
        (y,) = tf.nest.flatten(y)
        count = _total(terms.weights)
        nothing = Outside(count <= 0, count, "a weight above 0", NothingCounts)
        loss = nothing.marked(_total(terms.weighted) / count)
        measure = self._residual if self.kind == "numbers" else self._choices
        values = {"loss": loss, **measure(y, y_pred, terms.weights)}
        return tuple(values[name] for name in self.names)

    def _residual(
        self, y: Any, y_pred: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        y_pred = to_wide(y_pred)
        y = loss_terms.expand(tf.cast(y, y_pred.dtype), y_pred.shape.rank)
        squares = tf.square(y_pred - y)
        while squares.shape.rank > weights.shape.rank:
            squares = tf.reduce_mean(squares, axis=-1)
        return {"residual": tf.sqrt(_mean(squares, weights))}

    def _choices(
        self, y: Any, y_pred: Any, weights: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        expected = self.outputs.expected
        y = tf.convert_to_tensor(y)
        if expected.choice == "sides" and not expected.is_cross_entropy:
            y = tf.cast(y > 0, tf.int32)  # a hinge loss takes -1 for 0
        logits = self._logits(y_pred)
        if self.single and (logits.shape.rank == 1 or logits.shape[-1] > 1):
            logits = logits[..., tf.newaxis]
        soft = expected.choice == "sides"
        given, logits, marks = labels_and_logits(y, logits, soft)
        own = is_label(given, logits)
        others = tf.where(own, logits.dtype.min, logits)
        margin = label_logit(given, logits) - tf.reduce_max(others, axis=-1)
        weights = loss_terms.expand(weights, given.shape.rank)
        weights *= tf.ones_like(margin, weights.dtype)
        for unfit in marks:
            margin = unfit.marked(margin, weights)
        predicted = tf.argmax(logits, axis=-1, output_type=given.dtype)
        values = {
            "margin": _mean(margin, weights),
            "correct": _mean(predicted == given, weights),
            "given": _examples_last(given),
        }
        if self.tells_probabilities:
            p = tf.nn.softmax(logits, axis=-1)
            squares = tf.square(p - tf.cast(own, p.dtype))
            distances = tf.reduce_sum(squares, axis=-1)
            values |= {
                "probability": _mean(label_logit(given, p), weights),
                "error": tf.sqrt(_mean(distances, weights)),
                "probabilities": _examples_last(
                    p[..., 1] if self.kind == "labels" else p
                ),
            }
        return values

    def _logits(self, y_pred: Any) -> tf.Tensor:
        """Logits whose softmax is the probability that the loss sees."""
        outputs = self.outputs
        if outputs.choice == "classes" and outputs.activation == "sigmoid":
            # A loss over classes divides them by their sum.
            return tf.math.log(tf.maximum(to_wide(y_pred), _SMALLEST))
        if outputs.kind == "probabilities":
            y_pred = tf.maximum(to_wide(y_pred), _SMALLEST)
        elif outputs.kind == "sigmoids":
            y_pred = tf.clip_by_value(to_wide(y_pred), _SMALLEST, _LARGEST)
        return to_wide(outputs.logits(y_pred))


def output_statistics(
    model: keras.Model, x: Any, y: Any, loss: Any = None
) -> OutputStatistics:
    """What there is to measure of a model's outputs.

    Args:
        model: a built model.
        x: inputs of some examples.
        y: their labels.
        loss: used in place of the compiled loss.

    Raises:
        ValueError: if the model has several outputs, or if neither it nor its
            loss says what they are.
    """
    with preserved(model):
        y_pred = model(
            tf.nest.map_structure(tf.convert_to_tensor, x), training=False
        )
    if tf.nest.is_nested(y_pred):
        raise ValueError(
            "The labels of examples are measured at one output. Received: the "
            f"model '{model.name}' with {len(tf.nest.flatten(y_pred))}. Make "
            "a `keras.Model` of the output that is meant, compile it with its "
            "loss, and pass that with these labels."
        )
    evaluate_terms = terms_of_outputs(model, loss)
    outputs = outputs_of(model, loss, x)
    if _is_regression(outputs, y):
        outputs = Outputs("values", "", expected=ExpectedOutputs("", "numbers"))
        return OutputStatistics("numbers", False, outputs, evaluate_terms)
    check_consistent(outputs)
    if outputs.kind == "unclear" or outputs.choice not in ("classes", "sides"):
        reason = outputs.reason
        if outputs.kind != "unclear":
            reason = f"The loss '{outputs.expected.name}' does not say."
        raise ValueError(
            "What the outputs say of a label is known of classes and numbers, "
            f"in Keras's own losses. Received: the model '{model.name}', of "
            f"which it is not known. {reason} {REMEDY} Where the loss is one "
            "of your own, pass the nearest of Keras's, "
            "`loss=keras.losses.SparseCategoricalCrossentropy("
            "from_logits=True)` for one."
        )
    rank, last = y_pred.shape.rank, y_pred.shape[-1]
    single = outputs.choice == "sides"
    kind = "classes"
    if rank > 2:
        kind = "sequences"
    elif single and rank == 2 and last > 1:
        kind = "labels"
    return OutputStatistics(kind, single, outputs, evaluate_terms)


def _is_regression(outputs: Outputs, y: Any) -> bool:
    """Whether labels are numbers to predict.

    Those of a squared error are classes where the outputs are known to be
    probabilities, and labels all 0 or 1.
    """
    if outputs.expected.choice != "numbers":
        return False
    values = np.asarray(tf.nest.flatten(y)[0])
    return outputs.activation is None or not np.isin(values, (0, 1)).all()


def _weights_of_positions(sample_weight: Any) -> Any:
    """Sample weights, or None where each is of a whole example."""
    whole = all(
        leaf is None or tf.convert_to_tensor(leaf).shape[1:].num_elements() == 1
        for leaf in tf.nest.flatten(sample_weight)
    )
    return None if whole else sample_weight


def _total(tensor: tf.Tensor) -> tf.Tensor:
    """Sums over the positions of each example, `[n]`."""
    return tf.reduce_sum(tensor, axis=list(range(1, tensor.shape.rank)))


def _mean(values: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Weighted means over the positions of each example, `[n]`."""
    weights = tf.cast(weights, tf.float32)
    return _total(tf.cast(values, tf.float32) * weights) / _total(weights)


def _examples_last(tensor: tf.Tensor) -> tf.Tensor:
    """`[n, ...]` as `[..., n]`."""
    return tf.transpose(tensor, [*range(1, tensor.shape.rank), 0])
