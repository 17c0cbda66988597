"""The value of a query: its loss, or its label's logit or margin.

The sign is always turned so that lower is better: an example that lowers the
value is a proponent. Where the outputs are sequences, a query's value is the
mean over its own positions, masked ones aside, as for any per-example loss.

Synopsis:

    value = query_value(model, "margin")
    values = value(y, y_pred, sample_weight)  # [n]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.losses import loss_terms
from keras_tracin.losses.expected_outputs import ExpectedOutputs
from keras_tracin.losses.invalid_labels import (
    Outside,
    ProbabilitiesSaturated,
    inside,
)
from keras_tracin.losses.loss_terms import Terms, to_wide
from keras_tracin.losses.output_kinds import kind_of, outputs_of
from keras_tracin.losses.outputs import REMEDY, Outputs
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss

_ROUNDING = 1e-3  # of class indices that are stored as floating-point numbers


def query_value(
    model: keras.Model,
    query_loss: Any = "loss",
    loss: Any = None,
    x: Any = None,
) -> PerExampleLoss:
    """The function of a query that its proponents decrease.

    Args:
        model: a Keras model.
        query_loss: `"loss"`, the model's own; `"logit"`, minus the label's
            logit; `"margin"`, minus the label's logit over the log-sum-exp of
            the other classes' (Park et al. 2023, sec. 3.3); or a Keras loss
            or a function `(y_true, y_pred) -> [n]` that is lower where the
            prediction is better. A logit is what went into the last softmax
            or sigmoid. Outputs `[n, ..., classes]` have labels `[n, ...]`, or
            one-hot ones; a single output is the second of two classes, and
            its labels are 0 or 1.
        loss: the loss that `"loss"` stands for; the compiled one by default.
        x: inputs of some examples, whose outputs tell whether a built model
            returns logits or probabilities. Without them the loss does, or
            else the first outputs that the function is given.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`, lower is better.

    Raises:
        ValueError: for any other `query_loss`; if a logit or margin is asked
            for and the outputs do not tell it; or (when called) if the model
            has several outputs, labels that do not fit them (as those of a
            regression, which are no classes), or probabilities of exactly 0
            or 1.
    """
    if query_loss == "loss":
        return per_example_loss(model, loss)
    if query_loss in ("logit", "margin"):
        terms = negated_terms(model, query_loss, loss, x)
        return lambda *batch: loss_terms.per_example(terms(*batch))
    if isinstance(query_loss, str | keras.losses.Loss) or callable(query_loss):
        return per_example_loss(model, query_loss)
    raise ValueError(
        "`query_loss` should be 'loss', 'logit', 'margin', a Keras loss or a "
        f"function of (y_true, y_pred). Received: {query_loss!r}."
    )


def negated_terms(
    model: keras.Model, name: str, loss: Any = None, x: Any = None
) -> Callable[..., Terms]:
    """Minus the label's logit or margin at each position.

    Args:
        model: a Keras model.
        name: "logit" or "margin".
        loss: as in `query_value`.
        x: as in `query_value`.

    Returns:
        A function `(y, y_pred, sample_weight) -> Terms`.

    Raises:
        ValueError: as `query_value`.
    """
    outputs = None if x is None else outputs_of(model, loss, x)
    if outputs is not None:
        _check_known(name, outputs)
    return _negated(name, outputs, ExpectedOutputs.of(model, loss))


def _negated(
    name: str, outputs: Outputs | None, expected: ExpectedOutputs
) -> Callable[..., Terms]:
    measure = {"logit": label_logit, "margin": _label_margin}[name]
    known = outputs

    def evaluate(y, y_pred, sample_weight=None):
        nonlocal known
        _check_single(y_pred)
        if known is None:
            known = _first_seen(y_pred, expected)
        outputs = known
        _check_known(name, outputs)
        _check_exclusive(name, outputs, y_pred)
        computed = not hasattr(y_pred, "_keras_logits")
        # A binary loss takes a label of 0.9, which is on the side of 1; in
        # any other, a number between two classes is no label.
        soft = outputs.expected.choice == "sides"
        if computed and outputs.kind == "probabilities":
            shares = to_wide(y_pred)
            labels, shares, marks = labels_and_logits(y, shares, soft)
            values = _margin_of_shares(labels, shares)
        else:
            logits = outputs.logits(y_pred)
            labels, logits, marks = labels_and_logits(y, logits, soft)
            values = measure(labels, logits)
        if computed and outputs.kind in ("probabilities", "sigmoids"):
            marks.append(_saturated(outputs.kind, labels, y_pred))
        masks = [getattr(y_pred, "_keras_mask", None)]
        if expected.ignore_class is not None:
            given = loss_terms.expand(
                tf.convert_to_tensor(y), labels.shape.rank
            )
            masks.append(given != tf.cast(expected.ignore_class, given.dtype))
        terms = loss_terms.weigh(-values, sample_weight, masks)
        for unfit in marks:
            terms = terms.marked(unfit)
        return terms

    return evaluate


def _first_seen(y_pred, expected: ExpectedOutputs) -> Outputs:
    """The kind of outputs, where no examples were looked at before."""
    if hasattr(y_pred, "_keras_logits"):
        return Outputs("noted", "Keras notes its logits.", expected=expected)
    if expected.from_logits:
        return Outputs(
            "logits",
            f"The loss '{expected.name}' says so.",
            expected=expected,
        )
    if not tf.is_symbolic_tensor(y_pred):
        return kind_of(y_pred, expected)
    return Outputs(
        "unclear",
        "Whether the outputs are logits or probabilities was not looked at "
        "before the computation was compiled.",
    )


def _check_known(name: str, outputs: Outputs) -> None:
    """Raises ValueError if outputs do not tell a label's logit or margin."""
    if outputs.tells_logits or (name == "margin" and outputs.tells_margins):
        return
    ways = "pass a function of (y_true, y_pred) as `query_loss`."
    lost = ""
    if outputs.tells_margins:
        lost = (
            " A logarithm of a probability is not the logit that went into "
            "the softmax, which forgets what all logits have in common."
        )
        ways = f"'margin' can be told from them, or {ways}"
    raise ValueError(
        f"'{name}' needs to know the model's logits. {outputs.reason}{lost} "
        f"{REMEDY} Or else {ways}"
    )


def _check_exclusive(name: str, outputs: Outputs, y_pred) -> None:
    """Raises ValueError for margins of outputs that are chosen one by one."""
    rank, last = y_pred.shape.rank, y_pred.shape[-1]
    if name == "margin" and outputs.choice == "sides" and rank > 1 and last > 1:
        raise ValueError(
            "'margin' needs outputs that exclude each other and labels of one "
            f"class each. Received {last} outputs of which each says yes or no "
            f"by itself, under the loss '{outputs.expected.name}'. Use "
            "'logit', or pass a function of (y_true, y_pred) as `query_loss`."
        )


def labels_and_logits(
    y, logits, soft: bool
) -> tuple[tf.Tensor, tf.Tensor, list[Outside]]:
    """Labels `[n, ...]` and logits `[n, ..., classes]`, at least two.

    Args:
        y: class indices, or one-hot labels.
        logits: `[n, ..., k]`; of a single output, the second of two classes.
        soft: whether a label between two classes stands for the closer one.

    Returns:
        The labels, the logits, and marks of labels that are no classes.

    Raises:
        ValueError: if there is not one label for each position.
    """
    logits = tf.convert_to_tensor(logits)
    y = tf.convert_to_tensor(y)
    classes = logits.shape[-1]
    marks: list[Outside] = []
    if classes == 1:
        # σ(φ) is the softmax of (0, φ).
        logits = tf.concat([tf.zeros_like(logits), logits], axis=-1)
    elif y.shape.rank == logits.shape.rank and y.shape[-1] == classes:
        marks.append(_several(y))
        y = tf.argmax(y, axis=-1)
    labels = loss_terms.expand(y, logits.shape.rank - 1)
    if not labels.shape.is_compatible_with(logits.shape[:-1]):
        raise ValueError(
            "Logits and margins need one label for each position of the "
            f"output. Received labels of shape {y.shape} for logits of shape "
            f"{logits.shape}; where they are of a query, pass a function of "
            "(y_true, y_pred) as `query_loss`."
        )
    indices, outside = inside(
        tf.cast(tf.round(labels), tf.int64), logits.shape[-1]
    )
    if labels.dtype.is_floating and not soft:
        between = tf.abs(labels - tf.round(labels)) > _ROUNDING
        marks.append(Outside(between, labels, outside.expected))
    marks.append(outside)
    return indices, logits, marks


def _several(y: tf.Tensor) -> Outside:
    """One-hot labels `[n, ..., classes]` that name no class, or several."""
    largest = tf.reduce_max(y, axis=-1, keepdims=True)
    count = tf.reduce_sum(tf.cast(y >= largest, tf.int32), axis=-1)
    expected = (
        "labels of one class each, of which one entry is the largest "
        "(received: how many are)"
    )
    return Outside(count != 1, count, expected)


def _saturated(kind: str, labels: tf.Tensor, y_pred: tf.Tensor) -> Outside:
    """Where probabilities are 0 or 1 in the precision of the outputs."""
    smallest = 2.0**-14 if y_pred.dtype == tf.float16 else 2.0**-126
    p = to_wide(y_pred)
    if kind == "sigmoids":
        where = tf.reduce_any((p < smallest) | (1 - p < smallest), axis=-1)
    else:
        label, rest = _shares(labels, p)
        where = (label < smallest) | (rest < smallest)
    shown = tf.reduce_max(p, axis=-1)
    expected = f"probabilities above {smallest:.1g}, and below 1"
    return Outside(where, shown, expected, ProbabilitiesSaturated)


def _margin_of_shares(labels: tf.Tensor, p: tf.Tensor) -> tf.Tensor:
    """`log(p / (1 - p))` of the label; 1 - p is summed from the others."""
    label, rest = _shares(labels, p)
    return tf.math.log(label) - tf.math.log(rest)


def _shares(labels: tf.Tensor, p: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The label's probability, and what all others have together."""
    own, zero = is_label(labels, p), tf.zeros_like(p)
    return (
        tf.reduce_sum(tf.where(own, p, zero), axis=-1),
        tf.reduce_sum(tf.where(own, zero, p), axis=-1),
    )


def _check_single(y_pred) -> None:
    if tf.nest.is_nested(y_pred):
        raise ValueError(
            "'logit' and 'margin' need a model with one output. Received "
            f"{len(tf.nest.flatten(y_pred))} outputs; pass a function of "
            "(y_true, y_pred) as `query_loss`."
        )


def label_logit(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    """The entries `[n, ...]` of logits `[n, ..., classes]` at the labels."""
    return tf.gather(logits, labels, axis=-1, batch_dims=labels.shape.rank)


def _label_margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    others = tf.where(is_label(labels, logits), logits.dtype.min, logits)
    return label_logit(labels, logits) - tf.reduce_logsumexp(others, axis=-1)


def is_label(labels: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Booleans of the shape of `like`, True for the class of the label."""
    return tf.one_hot(
        labels, like.shape[-1], dtype=tf.bool, on_value=True, off_value=False
    )
