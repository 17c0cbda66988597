"""Labels that the loss has no class for.

At such a label TensorFlow stops the whole computation on a CPU, returns NaN on
a GPU, and a binary loss quietly goes below zero. This module finds the example.
Called eagerly, a loss raises `LabelsOutsideClasses`, which knows the rows.
Inside a `tf.function`, where nothing can be raised, the example's loss and
gradients become NaN, so that whoever finds the NaN can ask again eagerly.

Synopsis:

    y_true, outside = separate(loss, y_true, y_pred)
    values = loss.call(y_true, y_pred)  # cannot fail any more
    if outside is not None:
        values = outside.marked(values)     # NaN, or raises
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.losses.expected_outputs import unwrap

_BETWEEN_0_AND_1 = (
    keras.losses.binary_crossentropy,
    keras.losses.binary_focal_crossentropy,
    keras.losses.categorical_crossentropy,
    keras.losses.categorical_focal_crossentropy,
)
_MOST_SHOWN = 5


class LabelsOutsideClasses(ValueError):
    """Some rows of a batch have labels that the loss cannot take.

    Attributes:
        rows: their positions in the batch.
        received: these rows' first unfit labels.
        expected: the labels that the loss takes, in words.
    """

    def __init__(self, rows: Sequence[int], received: list, expected: str):
        self.rows, self.received = list(rows), received
        self.expected = expected
        super().__init__(
            "Labels are outside of the classes. Received "
            f"{received[:_MOST_SHOWN]} in rows {self.rows[:_MOST_SHOWN]} of "
            f"a batch, expected {expected}."
        )

    def explain(self, examples: str) -> str:
        """The message, with the examples in words in place of the rows."""
        return (
            f"The labels of {examples} are outside of the classes. Received "
            f"{self.received[:_MOST_SHOWN]}, expected {self.expected}. Correct "
            "them, or leave these examples out."
        )


class ProbabilitiesSaturated(LabelsOutsideClasses):
    """The probabilities of some rows are 0 or 1, to the last digit."""

    def explain(self, examples: str) -> str:
        """The message, with the examples in words in place of the rows."""
        return (
            f"The model's probabilities for {examples} are 0 or 1 in its "
            f"precision. Received {self.received[:_MOST_SHOWN]}, expected "
            f"{self.expected}: the logarithm of such outputs is not finite. "
            "Let Keras make the probabilities (`activation='softmax'` of the "
            "last layer), whose logits it knows, let the model return logits, "
            "or leave these examples out."
        )


@dataclasses.dataclass(frozen=True)
class Outside:
    """The labels of a batch that were replaced.

    Attributes:
        where: booleans of the labels' shape, True where a label was replaced.
        labels: the labels before.
        expected: the labels that the loss takes, in words.
        error: the class of the error to raise.
    """

    where: tf.Tensor
    labels: tf.Tensor
    expected: str
    error: type[LabelsOutsideClasses] = LabelsOutsideClasses

    def marked(self, values: tf.Tensor, weights=None) -> tf.Tensor:
        """Makes losses NaN that come from a replaced label.

        Args:
            values: losses, `[n]` or `[n, positions...]`.
            weights: weights of the shape of `values`; where they are zero
                (masked, padded) any label will do.

        Raises:
            LabelsOutsideClasses: instead, in eager execution.
        """
        where = self.where
        while where.shape.rank > values.shape.rank:
            where = tf.reduce_any(where, axis=-1)
        if weights is not None:
            where &= weights != 0
        if tf.executing_eagerly():
            self._raise_if_any(where.numpy())
        # A product, unlike a choice, has NaN for its gradient as well.
        return values * tf.where(
            where, tf.cast(np.nan, values.dtype), tf.ones([], values.dtype)
        )

    def _raise_if_any(self, where: np.ndarray) -> None:
        rows = np.flatnonzero(where.reshape(len(where), -1).any(axis=1))
        if rows.size:
            labels, unfit = self.labels.numpy(), self.where.numpy()
            received = [labels[row][unfit[row]].flat[0].item() for row in rows]
            raise self.error(rows.tolist(), received, self.expected)


def separate(
    loss: keras.losses.Loss, y_true: tf.Tensor, y_pred: tf.Tensor
) -> tuple[tf.Tensor, Outside | None]:
    """Replaces the labels that a loss cannot take by some that it can.

    Args:
        loss: a Keras loss.
        y_true: its labels.
        y_pred: its predictions.

    Returns:
        The labels, and those that were replaced; None for a loss that takes
        any.
    """
    function, options = unwrap(loss)
    if function is keras.losses.sparse_categorical_crossentropy:
        classes = y_pred.shape[options.get("axis", -1)]
        if classes is not None:
            return inside(y_true, classes, options.get("ignore_class"))
    if function in _BETWEEN_0_AND_1:
        return _replaced(y_true, 1, "numbers from 0 to 1")
    return y_true, None


def inside(
    labels: tf.Tensor, classes: int, ignored: int | None = None
) -> tuple[tf.Tensor, Outside]:
    """As `separate`, for labels that are class indices."""
    expected = f"whole numbers from 0 to {classes - 1}, for {classes} classes"
    return _replaced(labels, classes - 1, expected, ignored)


def _replaced(labels, largest, expected, ignored=None):
    """Puts 0 for labels that are not from 0 to `largest`, NaN included."""
    labels = tf.convert_to_tensor(labels)
    where = ~((labels >= 0) & (labels <= largest))
    if ignored is not None:
        where &= labels != tf.cast(ignored, labels.dtype)
    replaced = tf.where(where, tf.zeros_like(labels), labels)
    return replaced, Outside(where, labels, expected)
