"""The terms of the losses of all outputs of a model.

Synopsis:

    evaluate = terms_of_outputs(model)
    [(terms, loss_weight)] = evaluate(y, y_pred, sample_weight)
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

# Keras resolves nested outputs, names and `loss_weights` in this class alone;
# following it here is what keeps the two in step.
from keras.src.trainers.compile_utils import CompileLoss

from keras_tracin.losses import loss_terms
from keras_tracin.losses.loss_terms import Terms
from keras_tracin.models.compiled import (
    CompiledLoss,
    compiled_loss,
    trains_on_compiled_loss,
)


def terms_of_outputs(
    model: keras.Model,
    loss: Any = None,
    class_weight: Mapping[int, float] | None = None,
    dtype: str | None = None,
) -> Callable[..., list[tuple[Terms, float]]]:
    """A function that evaluates the losses of all outputs.

    Args:
        model: a Keras model.
        loss: a loss in place of the compiled one.
        class_weight: as in `model.fit`.
        dtype: the dtype to compute in; by default the loss's own.

    Returns:
        `(y, y_pred, sample_weight) -> [(terms, loss weight), ...]`, an entry
        for each output that has a loss.

    Raises:
        ValueError: if no `loss` is given and the model is not compiled, or
            computes its loss by a `compute_loss` or a `train_step` of its
            own; or (when called) as `loss_terms.terms_of`.
    """
    weights = None
    if loss is None:
        compiled = _compiled_loss(model)
        loss, weights = compiled.loss, compiled.weights
    names = getattr(model, "output_names", None)

    def evaluate(y, y_pred, sample_weight=None):
        if y is None:
            raise ValueError(
                "The data holds no labels. Received batches of `x` alone; "
                "expected `(x, y)` or `(x, y, sample_weight)`."
            )
        if class_weight:
            sample_weight = _apply_class_weights(y, sample_weight, class_weight)
        outputs = _TermsOfOutputs(
            loss, loss_weights=weights, output_names=names, dtype=dtype
        )
        return outputs.terms(y, y_pred, sample_weight)

    return evaluate


class _TermsOfOutputs(CompileLoss):
    """The compiled loss, as the terms of each output and their weights."""

    _flat_losses: Any

    def __init__(self, *args, dtype: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self._terms_dtype = dtype
        if dtype is not None:
            self._dtype = dtype

    def build(self, y_true, y_pred):
        # For several outputs Keras makes metrics here, whose variables a
        # compiled step must not create; nothing uses them.
        with tf.Graph().as_default():
            super().build(y_true, y_pred)
        self._flat_losses = [
            entry._replace(loss=self._collector(entry))
            for entry in self._flat_losses
        ]
        self._metrics = [None] * len(self._flat_losses)

    def _collector(self, entry):
        weight = 1.0 if entry.loss_weights is None else entry.loss_weights

        def collect(y_true, y_pred, sample_weight):
            terms = loss_terms.terms_of(
                entry.loss, y_true, y_pred, sample_weight, self._terms_dtype
            )
            self._collected.append((terms, weight))
            return 0.0

        return collect

    def terms(self, y_true, y_pred, sample_weight) -> list[tuple[Terms, float]]:
        """The terms of each output that has a loss, and its loss weight."""
        self._collected: list[tuple[Terms, float]] = []
        self.call(y_true, y_pred, sample_weight)
        return self._collected


def _compiled_loss(model: keras.Model) -> CompiledLoss:
    if _redefines(model, "compute_loss"):
        raise ValueError(
            f"The model '{model.name}' computes its loss by a `compute_loss` "
            "of its own, which has no value for each example. Pass the same "
            "loss as `loss=`."
        )
    compiled = compiled_loss(model)
    if compiled is None:
        raise ValueError(
            f"The model '{model.name}' has no compiled loss. Call "
            "`model.compile(loss=...)` as for training, or pass `loss=`."
        )
    if _redefines(model, "train_step"):
        if not trains_on_compiled_loss(model):
            raise ValueError(
                f"The model '{model.name}' trains by a `train_step` of its "
                "own, which does not use the compiled loss. Pass the loss that "
                "it trains on as `loss=`: a function `(y_true, y_pred)` of one "
                "value per example."
            )
        warnings.warn(
            f"The model '{model.name}' has a `train_step` of its own. Its "
            "compiled loss is taken for the one it trains on; pass `loss=` if "
            "that is another.",
            stacklevel=4,
        )
    return compiled


def _redefines(model: keras.Model, method: str) -> bool:
    own = getattr(type(model), method) is not getattr(keras.Model, method)
    return own or method in vars(model)


def check_class_weight(class_weight: Any) -> None:
    """Raises ValueError unless class weights are as `model.fit` takes them."""
    if class_weight is None:
        return
    if not isinstance(class_weight, Mapping) or not all(
        isinstance(label, numbers.Integral)
        and int(label) >= 0
        and isinstance(weight, numbers.Real)
        and math.isfinite(weight)
        for label, weight in class_weight.items()
    ):
        raise ValueError(
            "`class_weight` should be a dict of finite weights by class index, "
            "such as {0: 1.0, 1: 2.5}, as `model.fit` takes it. Received: "
            f"{class_weight!r}."
        )


def _apply_class_weights(y, sample_weight, class_weight) -> tf.Tensor:
    """Multiplies sample weights by those of the labels' classes, as `fit` does.

    Labels with a last axis longer than one are one-hot, all others indices.
    """
    if tf.nest.is_nested(y):
        raise ValueError(
            "`class_weight` needs a single output. Received labels of "
            f"structure {tf.nest.map_structure(lambda _: '*', y)}; pass "
            "`sample_weight` with the data instead."
        )
    y = tf.convert_to_tensor(y)
    if y.shape.rank > 1 and y.shape[-1] != 1:
        labels = tf.argmax(y, axis=-1, output_type=tf.int64)
    else:
        labels = y if y.shape.rank == 1 else tf.squeeze(y, axis=-1)
        labels = tf.cast(tf.round(labels), tf.int64)
    size = max(class_weight) + 1
    table = [float(class_weight.get(label, 1.0)) for label in range(size)]
    # Classes without an entry weigh 1, as they do in `fit`.
    inside = tf.clip_by_value(labels, 0, size - 1)
    weights = tf.where(
        tf.equal(inside, labels), tf.gather(tf.constant(table), inside), 1.0
    )
    if sample_weight is None:
        return weights
    sample_weight = tf.cast(sample_weight, weights.dtype)
    rank = max(weights.shape.rank, sample_weight.shape.rank)
    if weights.shape.rank == 1 and sample_weight.shape[1:] == [1]:
        rank = 1
    return loss_terms.expand(sample_weight, rank) * loss_terms.expand(
        weights, rank
    )
