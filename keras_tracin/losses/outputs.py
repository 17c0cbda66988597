"""The kind of a model's outputs, and the logits that follow from them.

`keras_tracin.losses.output_kinds` determines the kind.

Synopsis:

    outputs = Outputs("logits", "The loss has from_logits=True.")
    outputs.logits(y_pred)                   # [n, ..., classes]
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.losses.expected_outputs import ExpectedOutputs, choice_of
from keras_tracin.losses.loss_terms import to_wide

REMEDY = (
    "Let Keras make the probabilities (`activation='softmax'` or 'sigmoid' of "
    "the last layer, `keras.layers.Softmax()`), or let the model return logits "
    "and compile it with `from_logits=True`."
)


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The kind of a model's outputs.

    Attributes:
        kind: "noted", an activation whose logits Keras notes on its output;
            "logits"; "probabilities", which were a softmax, or which the loss
            divides by their sum; "sigmoids", a probability each;
            "log-probabilities", up to rounding the logarithm of a softmax;
            "values", neither, of which larger ones speak for their class;
            or "unclear".
        reason: a sentence on how that is known.
        contradicts: whether the loss says one thing and the outputs another.
        activation: "softmax" or "sigmoid" where the outputs, or what their
            exponentials are, come from one; else None.
        expected: the outputs that the loss expects.
    """

    kind: str
    reason: str
    contradicts: bool = False
    activation: str | None = None
    expected: ExpectedOutputs = dataclasses.field(
        default_factory=ExpectedOutputs
    )

    @property
    def choice(self) -> str | None:
        """The choice that the outputs make; see `choice_of`."""
        return choice_of(self.activation, self.expected)

    @property
    def tells_logits(self) -> bool:
        """Whether the logits themselves follow from the outputs."""
        return self.kind in ("noted", "logits", "sigmoids", "values")

    @property
    def tells_margins(self) -> bool:
        """Whether the differences of logits follow from the outputs."""
        return self.kind != "unclear"

    def logits(self, y_pred: tf.Tensor) -> tf.Tensor:
        """Logits `[n, ..., k]` of outputs `[n, ..., k]`.

        Of a softmax they are known but for a constant for each position: the
        logarithms of its probabilities are returned.

        Raises:
            ValueError: if they are not known.
        """
        noted = getattr(y_pred, "_keras_logits", None)
        if noted is not None:
            return tf.convert_to_tensor(noted)
        if self.kind in ("noted", "unclear"):
            raise ValueError(
                f"The model's logits are not known. {self.reason} In this "
                "computation Keras did not note the logits. "
                f"{REMEDY}"
            )
        y_pred = tf.convert_to_tensor(y_pred)
        if self.kind in ("probabilities", "sigmoids"):
            y_pred = to_wide(y_pred)
        if self.kind == "probabilities":
            return tf.math.log(y_pred)
        if self.kind == "sigmoids":
            return tf.math.log(y_pred) - tf.math.log1p(-y_pred)
        return y_pred

    def with_logits(self, y_pred: Any) -> Any:
        """Recomputes outputs from logits that Keras can see.

        Probabilities are those of a softmax of their logarithms, or of a
        sigmoid of their log-odds. Whatever is made of an output otherwise, as
        a loss may go around the operation that made it, is left as it is.
        """
        known = tf.nest.is_nested(y_pred) or hasattr(y_pred, "_keras_logits")
        if known:
            return y_pred
        smallest, largest = 2.0**-126, 1 - 2.0**-24
        binary = (
            self.expected.is_cross_entropy and self.expected.choice == "sides"
        )
        if self.kind == "probabilities" and not binary:
            logits = tf.math.log(tf.maximum(y_pred, smallest))
            outputs = keras.activations.softmax(logits)
        elif self.kind == "sigmoids":
            p = tf.clip_by_value(y_pred, smallest, largest)
            logits = tf.math.log(p) - tf.math.log1p(-p)
            outputs = keras.activations.sigmoid(logits)
        else:
            outputs = tf.identity(y_pred)
        if hasattr(y_pred, "_keras_mask"):
            outputs._keras_mask = y_pred._keras_mask
        return outputs


def check_consistent(outputs: Outputs) -> None:
    """Raises ValueError if a loss and the outputs contradict each other."""
    if outputs.contradicts:
        raise ValueError(
            f"The loss does not fit the model's outputs. {outputs.reason} "
            f"{REMEDY}"
        )
