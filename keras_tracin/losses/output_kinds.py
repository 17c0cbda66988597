"""Determines whether a model's outputs are logits or probabilities.

A loss can be computed from either, but a label's logit or margin cannot: taken
for logits, probabilities give numbers that look like scores and are none. What
the outputs are is told by Keras, which notes the logits of its own softmax and
sigmoid on their outputs, by the loss, and by the outputs of a few examples:
rows that add up to one are no logits. Where these contradict one another, or
say nothing, that is the answer.

Synopsis:

    outputs = outputs_of(model, None, x)     # x: a few examples
    outputs.kind                             # "probabilities", ...
    logits = outputs.logits(y_pred)          # [n, ..., classes]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.losses.expected_outputs import ExpectedOutputs
from keras_tracin.losses.outputs import Outputs
from keras_tracin.models.state import preserved

SAMPLE = 32  # examples whose outputs are looked at

# How far from one the sum of a row of probabilities may be.
_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
_FLOAT32_TOLERANCE = 1e-3

# Operations that change the form of numbers, not what they stand for.
_FORMALITIES = ("Identity", "Cast", "Reshape", "Squeeze", "ExpandDims")


def outputs_of(model: keras.Model, loss: Any, x: Any) -> Outputs:
    """The kind of a model's outputs at its present weights.

    Args:
        model: a built model. It is called on `x` in inference mode, and left
            as it was.
        loss: a loss in place of the compiled one.
        x: inputs of some examples; `SAMPLE` are enough.
    """
    y_pred = _outputs(model, x)
    if tf.nest.is_nested(y_pred):
        return Outputs(
            "unclear",
            f"It has {len(tf.nest.flatten(y_pred))} outputs, expected one.",
        )
    return kind_of(
        y_pred,
        ExpectedOutputs.of(model, loss),
        model.compute_dtype,
        functools.partial(_last_operation, model, x),
    )


def kind_of(
    y_pred: tf.Tensor,
    expected: ExpectedOutputs,
    compute_dtype: str = "float32",
    last_operation: Callable[[], str] = str,
) -> Outputs:
    """The kind of outputs, from their values and what the loss expects.

    Args:
        y_pred: the outputs `[n, ..., k]` of some examples, not traced.
        expected: the outputs that the loss expects.
        compute_dtype: the dtype that they were computed in.
        last_operation: returns the name of the TensorFlow operation that made
            them; called where nothing else tells.
    """
    outputs = _kind_of(y_pred, expected, compute_dtype, last_operation)
    return dataclasses.replace(outputs, expected=expected)


def _kind_of(y_pred, expected, compute_dtype, last_operation) -> Outputs:
    noted = getattr(y_pred, "_keras_logits", None)
    rows = _rows(y_pred)
    classes = rows.shape[-1]
    tolerance = max(
        _TOLERANCES.get(str(dtype), _FLOAT32_TOLERANCE)
        for dtype in (tf.as_dtype(y_pred.dtype).name, compute_dtype)
    )
    if not expected.last_axis and classes > 1:
        return Outputs(
            "unclear",
            f"The loss '{expected.name}' has its classes along another axis "
            "than the last.",
        )
    if noted is not None:
        return _noted(y_pred, noted, tolerance)
    rows = rows[np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)]
    positive = bool((rows >= 0).all())
    shares = positive and bool((rows <= 1).all())
    sums = rows.sum(axis=1)
    several = classes > 1 and len(rows) > 0
    largest = max(np.abs(rows).max(initial=0), 1e-30)
    if several and positive and (np.abs(sums - 1) <= tolerance).all():
        return _softmax(expected)
    if several and _are_log_probabilities(rows, tolerance):
        return Outputs(
            "log-probabilities",
            "The outputs are logarithms of probabilities: their exponentials "
            "add up to 1.",
            activation="softmax",
        )
    scaled = (
        several
        and positive
        and np.ptp(sums) <= tolerance * sums.max()
        and np.ptp(rows, axis=0).max() > tolerance * largest
    )
    if expected.from_logits:
        if scaled:
            what = f"add up to {sums.mean():.4g} in each example"
            return _contradiction(expected, what)
        if classes == 1 and shares and last_operation() == "Sigmoid":
            return _contradiction(expected, "come out of a sigmoid")
        return Outputs(
            "logits", f"The loss '{expected.name}' has from_logits=True."
        )
    if expected.from_logits is False and expected.is_cross_entropy:
        return _from_probabilities(expected, classes, positive, shares)
    if not len(rows):
        return Outputs("values", "The outputs of some examples are all 0.")
    if shares or scaled:
        what = (
            "lie between 0 and 1"
            if shares
            else f"add up to {sums.mean():.4g} in each example"
        )
        return Outputs(
            "unclear",
            f"The outputs of some examples all {what}, as probabilities would, "
            f"and the loss '{expected.name}' does not say whether they are "
            "probabilities or logits.",
        )
    return Outputs("values", "The outputs of some examples are not in [0, 1].")


def _noted(y_pred, noted, tolerance: float) -> Outputs:
    """The outputs of one of Keras's activations, if along the last axis."""
    logits = tf.cast(noted, tf.float64)
    received = tf.cast(y_pred, tf.float64).numpy()
    names = []
    if logits.shape == y_pred.shape:
        for name in ("softmax", "sigmoid"):
            gap = np.abs(getattr(tf.nn, name)(logits).numpy() - received)
            if not (gap > tolerance).any():  # NaN is for others to find
                names.append(name)
    if names:
        return Outputs(
            "noted",
            "Keras notes what went into the last activation.",
            activation=names[0] if len(names) == 1 else None,
        )
    return Outputs(
        "unclear",
        "The logits that Keras notes are not those of a softmax or sigmoid "
        "along the outputs' last axis.",
    )


def _softmax(expected: ExpectedOutputs) -> Outputs:
    if expected.from_logits:
        return _contradiction(
            expected, "are probabilities: they add up to 1 in each example"
        )
    return Outputs(
        "probabilities",
        "The outputs are probabilities (they add up to 1 in each example) and "
        "Keras does not know of which logits.",
        activation="softmax",
    )


def _from_probabilities(
    expected: ExpectedOutputs, classes: int, positive: bool, shares: bool
) -> Outputs:
    """The kind of outputs under a loss that takes their logarithms."""
    if expected.choice == "sides" and shares:
        return Outputs(
            "sigmoids",
            f"The loss '{expected.name}' has from_logits=False, and the "
            "outputs lie between 0 and 1.",
            activation="sigmoid",
        )
    if expected.choice == "classes" and positive and classes > 1:
        return Outputs(
            "probabilities",
            f"The loss '{expected.name}' has from_logits=False, so it takes "
            "the outputs for probabilities, after it divided them by their "
            "sum.",
        )
    return Outputs(
        "unclear",
        f"The loss '{expected.name}' has from_logits=False, so it expects "
        "probabilities, but the outputs of some examples are "
        + (
            "a single number under a loss of several classes."
            if positive and expected.choice == "classes"
            else "below 0 or above 1."
        ),
        contradicts=True,
    )


def _contradiction(expected: ExpectedOutputs, what: str) -> Outputs:
    return Outputs(
        "unclear",
        f"The loss '{expected.name}' has from_logits=True, but the outputs "
        f"{what}.",
        contradicts=True,
    )


def _are_log_probabilities(rows: np.ndarray, tolerance: float) -> bool:
    if (rows > tolerance).any():
        return False
    sums = np.exp(rows).sum(axis=1)
    return bool((np.abs(sums - 1) <= tolerance).all())


def _rows(y_pred: tf.Tensor) -> np.ndarray:
    """Outputs as rows `[positions, k]` in float64, without masked ones."""
    values = tf.cast(y_pred, tf.float64).numpy()
    if values.ndim < 2:
        values = values.reshape(len(values), 1)
    rows = values.reshape(-1, values.shape[-1])
    mask = getattr(y_pred, "_keras_mask", None)
    if mask is not None and np.size(mask) == len(rows):
        rows = rows[np.asarray(mask, bool).reshape(-1)]
    return rows


def _outputs(model: keras.Model, x: Any) -> Any:
    """The outputs of some examples; what the call changes is put back."""
    with preserved(model):
        return model(
            tf.nest.map_structure(tf.convert_to_tensor, x), training=False
        )


def _last_operation(model: keras.Model, x: Any) -> str:
    """The type of the TensorFlow operation that makes the outputs."""
    specs = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec(leaf.shape, leaf.dtype),
        tf.nest.map_structure(tf.convert_to_tensor, x),
    )
    traced = tf.function(lambda x: model(x, training=False), autograph=False)
    operation = traced.get_concrete_function(specs).outputs[0].op
    while operation.type in _FORMALITIES:
        operation = operation.inputs[0].op
    return operation.type
