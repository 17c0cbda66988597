"""What a query measures: its loss, or its label's logit or margin.

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

from keras_tracin import loss_terms
from keras_tracin.labels import Outside, inside
from keras_tracin.losses import PerExampleLoss, per_example_loss


def query_value(
    model: keras.Model, query_loss: Any = "loss", loss: Any = None
) -> PerExampleLoss:
    """The function of a query whose decrease counts as help.

    Args:
        model: a Keras model.
        query_loss: `"loss"`, the model's own; `"logit"`, minus the label's
            logit; `"margin"`, minus the label's logit over the log-sum-exp of
            the other classes' (Park et al. 2023, sec. 3.3); or a Keras loss
            or a function `(y_true, y_pred) -> [n]` that is lower where the
            prediction is better. A logit is what went into the last softmax
            or sigmoid. Outputs `[n, ..., classes]` have labels `[n, ...]`, or
            one-hot ones; a single output is the second of two classes.
        loss: what `"loss"` stands for; the compiled loss by default.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`, lower is better.

    Raises:
        ValueError: for any other `query_loss`; or (when called) if a logit is
            asked for and the model has several outputs, or labels that do not
            fit them.
    """
    if query_loss == "loss":
        return per_example_loss(model, loss)
    if query_loss == "logit":
        return _negated(_label_logit)
    if query_loss == "margin":
        return _negated(_label_margin)
    if isinstance(query_loss, str | keras.losses.Loss) or callable(query_loss):
        return per_example_loss(model, query_loss)
    raise ValueError(
        "`query_loss` should be 'loss', 'logit', 'margin', a Keras loss or a "
        f"function of (y_true, y_pred). Received: {query_loss!r}."
    )


def _negated(
    measure: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
) -> PerExampleLoss:
    """Minus what `measure` says of each position, as a value per example."""

    def evaluate(y, y_pred, sample_weight=None):
        labels, logits, outside = _labels_and_logits(y, y_pred)
        values = -measure(labels, logits)
        masks = [getattr(y_pred, "_keras_mask", None)]
        terms = loss_terms.weigh(values, sample_weight, masks)
        return loss_terms.per_example(terms.marked(outside))

    return evaluate


def _labels_and_logits(y, y_pred) -> tuple[tf.Tensor, tf.Tensor, Outside]:
    """Labels `[n, ...]` and logits `[n, ..., classes]`, at least two."""
    logits = tf.convert_to_tensor(_logits(y_pred))
    y = tf.convert_to_tensor(y)
    classes = logits.shape[-1]
    if classes == 1:
        # σ(φ) is the softmax of (0, φ).
        logits = tf.concat([tf.zeros_like(logits), logits], axis=-1)
    elif y.shape.rank == logits.shape.rank and y.shape[-1] == classes:
        y = tf.argmax(y, axis=-1)
    labels = loss_terms.expand(y, logits.shape.rank - 1)
    if not labels.shape.is_compatible_with(logits.shape[:-1]):
        raise ValueError(
            "'logit' and 'margin' need one label for each position of the "
            f"output. Received labels of shape {y.shape} for logits of shape "
            f"{logits.shape}; pass a function of (y_true, y_pred) as "
            "`query_loss`."
        )
    labels, outside = inside(
        tf.cast(tf.round(labels), tf.int64), logits.shape[-1]
    )
    return labels, logits, outside


def _logits(y_pred) -> tf.Tensor:
    """What went into the last softmax or sigmoid, if there is one."""
    if tf.nest.is_nested(y_pred):
        raise ValueError(
            "'logit' and 'margin' need a model with one output. Received "
            f"{len(tf.nest.flatten(y_pred))} outputs; pass a function of "
            "(y_true, y_pred) as `query_loss`."
        )
    return getattr(y_pred, "_keras_logits", y_pred)


def _label_logit(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return tf.gather(logits, labels, axis=-1, batch_dims=labels.shape.rank)


def _label_margin(labels: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    chosen = tf.one_hot(
        labels, logits.shape[-1], dtype=tf.bool, on_value=True, off_value=False
    )
    others = tf.where(chosen, logits.dtype.min, logits)
    return _label_logit(labels, logits) - tf.reduce_logsumexp(others, axis=-1)
