"""The loss of one example, from what the model was compiled with.

Keras reduces a batch's losses to a number; attribution needs them apart. The
reduction is undone here: `ℓ_i` is what the batch's loss would be if example i
were alone in it, times its sample weight. Without masks, a mean reduction of
the batch is then the mean of the `ℓ_i`, and a sum reduction their sum. With a
mask, `ℓ_i` is the mean over i's own unmasked positions, so that it does not
depend on the rest of the batch.

Weight regularisers belong to the objective, not to an example: they are not
part of `ℓ_i`. Losses that layers add from their inputs have no per-example
value and are refused (`check_no_activation_losses`).

Synopsis:

    loss = per_example_loss(model)
    values = loss(y, y_pred, sample_weight)  # [n]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

# Keras resolves nested outputs, names and `loss_weights` in this class alone;
# following it here is what keeps the two in step.
from keras.src.trainers.compile_utils import CompileLoss

from keras_tracin.labels import Outside, inside, separate

PerExampleLoss = Callable[[Any, Any, Any], tf.Tensor]


class _PerExampleCompileLoss(CompileLoss):
    """The compiled loss with every reduction over examples undone."""

    _flat_losses: Any

    def __init__(self, *args, dtype: str | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self._wanted_dtype = dtype
        if dtype is not None:
            self._dtype = dtype

    def build(self, y_true, y_pred):
        # For several outputs Keras makes metrics here, whose variables a
        # compiled step must not create; nothing uses them.
        with tf.Graph().as_default():
            super().build(y_true, y_pred)
        self._flat_losses = [
            entry._replace(loss=_PerExample(entry.loss, self._wanted_dtype))
            for entry in self._flat_losses
        ]
        self._metrics = [None] * len(self._flat_losses)


class _PerExample:
    """One Keras loss, evaluated to a value per example."""

    def __init__(self, loss: keras.losses.Loss, dtype: str | None = None):
        self._loss = loss
        self._dtype = dtype or loss.dtype

    def __call__(self, y_true, y_pred, sample_weight=None) -> tf.Tensor:
        loss = self._loss
        if getattr(loss, "fn", None) is keras.losses.circle:
            raise ValueError(
                f"The loss '{loss.name}' compares the examples of a batch "
                "with each other, so examples cannot be told apart. Pass "
                "another loss as `loss=`."
            )
        masks = [getattr(y_pred, "_keras_mask", None)]
        y_pred = _as_for_keras(y_pred, self._dtype)
        # As `Loss.__call__` does it: where the dtype fits already the tensor
        # stays the same object and keeps the logits Keras noted on it.
        y_true, y_pred = keras.tree.map_structure(
            lambda t: keras.ops.convert_to_tensor(t, dtype=self._dtype),
            (y_true, y_pred),
        )
        y_true, outside = separate(loss, y_true, y_pred)
        values = tf.convert_to_tensor(loss.call(y_true, y_pred))
        masks.append(getattr(values, "_keras_mask", None))
        if values.shape.rank == 0:
            raise ValueError(
                f"The loss '{loss.name}' returns a scalar: it has already "
                "reduced the batch, so examples cannot be told apart. Return "
                "one value per example (leave out the mean or the sum; Keras "
                "reduces what `compile` was given), or pass such a loss as "
                "`loss=`."
            )
        weights = _weights(sample_weight, masks, values)
        if outside is not None:
            values = outside.marked(values, weights)
        return _reduce_positions(values, weights, masks, loss.reduction)


def _as_for_keras(y_pred, dtype):
    """`y_pred` without logits that Keras would have lost in a cast.

    Outputs in half precision come here in float32 already.
    """
    logits = getattr(y_pred, "_keras_logits", None)
    if logits is not None and logits.dtype != dtype:
        return tf.identity(y_pred)
    return y_pred


def _weights(sample_weight, masks, values) -> tf.Tensor:
    """Sample weights times masks, broadcast over the positions of `values`."""
    weights = tf.ones_like(values)
    for factor in (*masks, sample_weight):
        if factor is None:
            continue
        factor = tf.cast(factor, values.dtype)
        if factor.shape.rank > values.shape.rank and factor.shape[-1] == 1:
            factor = tf.squeeze(factor, -1)
        while factor.shape.rank < values.shape.rank:
            factor = factor[..., None]
        weights *= factor
    return weights


def _reduce_positions(values, weights, masks, reduction) -> tf.Tensor:
    """The weighted mean (or sum) over each example's own positions, `[n]`."""
    axes = list(range(1, values.shape.rank))
    if not axes:
        return values * weights
    if reduction == "sum":
        return tf.reduce_sum(values * weights, axis=axes)
    if all(mask is None for mask in masks):
        return tf.reduce_mean(values * weights, axis=axes)
    seen = _weights(None, masks, values)
    return tf.math.divide_no_nan(
        tf.reduce_sum(values * weights, axis=axes),
        tf.reduce_sum(seen, axis=axes),
    )


def per_example_loss(
    model: keras.Model,
    loss: Any = None,
    class_weight: Mapping[int, float] | None = None,
    dtype: str | None = None,
) -> PerExampleLoss:
    """The per-example loss of a compiled model.

    Args:
        model: a Keras model.
        loss: anything `compile(loss=...)` takes, used in place of the
            compiled loss; a plain function `(y_true, y_pred)` should return
            one value per example.
        class_weight: as in `model.fit`: a weight for each class index by
            which the losses of its examples are scaled.
        dtype: what to compute in; by default the loss's own dtype.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`.

    Raises:
        ValueError: if the model is not compiled and no `loss` is given, or
            (when called) if the loss is reduced already.
    """
    weights = None
    if loss is None:
        compiled = getattr(model, "_compile_loss", None)
        if compiled is None:
            raise ValueError(
                f"The model '{model.name}' has no compiled loss. Call "
                "`model.compile(loss=...)` as for training, or pass `loss=`."
            )
        loss, weights = compiled._user_loss, compiled._user_loss_weights
    names = getattr(model, "output_names", None)

    def evaluate(y, y_pred, sample_weight=None):
        if class_weight:
            sample_weight = _class_weighted(y, sample_weight, class_weight)
        if y is None:
            raise ValueError(
                "The data holds no labels. Received batches of `x` alone; "
                "expected `(x, y)` or `(x, y, sample_weight)`."
            )
        reduced = _PerExampleCompileLoss(
            loss, loss_weights=weights, output_names=names, dtype=dtype
        )
        return reduced.call(y, y_pred, sample_weight)

    return evaluate


def penalty_weight(
    model: keras.Model, loss: Any = None, batch_size: int | None = None
) -> float:
    """What weight regularisers count beside the mean of the `ℓ_i`.

    Keras adds them to each batch's loss as they are. Beside a loss that is a
    mean over the batch they count 1; beside a sum over `batch_size` examples
    they count `1 / batch_size` of the mean. Decoupled weight decay, an
    optimizer's own, is not part of the objective and counts nothing.

    Args:
        model: a Keras model.
        loss: used in place of the compiled loss.
        batch_size: that of training, which only a sum needs to know.

    Raises:
        ValueError: if the model is regularised and its losses are summed, and
            no `batch_size` is given.
    """
    if not any(getattr(v, "regularizer", None) for v in model.weights):
        return 1.0
    if loss is None:
        compiled = getattr(model, "_compile_loss", None)
        loss = compiled._user_loss if compiled is not None else None
    summed = [
        entry
        for entry in tf.nest.flatten(loss)
        if getattr(entry, "reduction", "mean") in ("sum", "none", None)
    ]
    if not summed:
        return 1.0
    if batch_size is None:
        raise ValueError(
            "The loss is summed over each batch, so what the weight "
            "regularisers count beside its mean depends on the batch size of "
            "training. Pass it as `batch_size=`. Received: losses "
            f"{[type(entry).__name__ for entry in summed]} with "
            "reduction='sum'."
        )
    return 1.0 / batch_size


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
            prediction is better.
        loss: what `"loss"` stands for; the compiled loss by default.

    Returns:
        A function `(y, y_pred, sample_weight) -> [n]`, lower is better.
    """
    if query_loss == "loss":
        return per_example_loss(model, loss)
    if query_loss in ("logit", "margin"):
        measure = _label_logit if query_loss == "logit" else _label_margin

        def evaluate(y, y_pred, sample_weight=None):
            values = -measure(y, y_pred)
            if sample_weight is None:
                return values
            return values * tf.cast(
                tf.reshape(sample_weight, [-1]), values.dtype
            )

        return evaluate
    if isinstance(query_loss, str | keras.losses.Loss) or callable(query_loss):
        return per_example_loss(model, query_loss)
    raise ValueError(
        "`query_loss` should be 'loss', 'logit', 'margin', a Keras loss or a "
        f"function of (y_true, y_pred). Received: {query_loss!r}."
    )


def activation_losses(model: keras.Model) -> list[str]:
    """Layers that added a loss computed from their inputs in the last call."""
    return [
        layer.name
        for layer in model._flatten_layers()
        if getattr(layer, "_losses", None)
    ]


def check_no_activation_losses(model: keras.Model) -> None:
    """Refuses losses that depend on a whole batch's activations.

    Call it after the model, inside the same trace.

    Raises:
        ValueError: naming the layers, and the way round.
    """
    layers = activation_losses(model)
    if layers:
        raise ValueError(
            f"Layers {layers} add losses computed from their inputs "
            "(`add_loss` or `activity_regularizer`), which cannot be split "
            "into examples. Pass the rest of the objective as `loss=` to "
            "attribute that alone."
        )


def _class_weighted(y, sample_weight, class_weight) -> tf.Tensor:
    if tf.nest.is_nested(y):
        raise ValueError(
            "`class_weight` needs a single output. Received labels of "
            f"structure {tf.nest.map_structure(lambda _: '*', y)}; pass "
            "`sample_weight` with the data instead."
        )
    y = tf.convert_to_tensor(y)
    if y.shape.rank > 1 and y.shape[-1] > 1:
        labels = tf.argmax(y, axis=-1, output_type=tf.int64)
    else:
        labels = tf.cast(tf.round(tf.reshape(y, [tf.shape(y)[0]])), tf.int64)
    size = max(class_weight) + 1
    table = [float(class_weight.get(label, 1.0)) for label in range(size)]
    # Classes without an entry weigh 1, as they do in `fit`.
    inside = tf.clip_by_value(labels, 0, size - 1)
    weights = tf.where(
        tf.equal(inside, labels), tf.gather(tf.constant(table), inside), 1.0
    )
    if sample_weight is None:
        return weights
    return tf.cast(tf.reshape(sample_weight, [-1]), weights.dtype) * weights


def _logits(y_pred) -> tf.Tensor:
    """What went into the last softmax or sigmoid, if there is one."""
    if tf.nest.is_nested(y_pred):
        raise ValueError(
            "'logit' and 'margin' need a model with one output. Received "
            f"{len(tf.nest.flatten(y_pred))} outputs; pass a function of "
            "(y_true, y_pred) as `query_loss`."
        )
    return getattr(y_pred, "_keras_logits", y_pred)


def _labels_and_logits(y, y_pred) -> tuple[tf.Tensor, tf.Tensor, Outside]:
    """Labels `[n]` and logits `[n, classes]`; one sigmoid becomes two."""
    logits = tf.convert_to_tensor(_logits(y_pred))
    logits = tf.reshape(logits, [-1, logits.shape[-1]])
    if logits.shape[-1] == 1:
        # σ(φ) is the softmax of (0, φ).
        logits = tf.concat([tf.zeros_like(logits), logits], axis=-1)
    y = tf.convert_to_tensor(y)
    if y.shape.rank == 2 and y.shape[-1] == logits.shape[-1]:
        labels = tf.argmax(y, axis=-1)
    else:
        labels = tf.cast(tf.round(tf.reshape(y, [-1])), tf.int64)
    labels, outside = inside(labels, logits.shape[-1])
    return labels, logits, outside


def _label_logit(y, y_pred) -> tf.Tensor:
    labels, logits, outside = _labels_and_logits(y, y_pred)
    return outside.marked(tf.gather(logits, labels, axis=1, batch_dims=1))


def _label_margin(y, y_pred) -> tf.Tensor:
    labels, logits, outside = _labels_and_logits(y, y_pred)
    chosen = tf.one_hot(
        labels, logits.shape[-1], dtype=tf.bool, on_value=True, off_value=False
    )
    others = tf.where(chosen, logits.dtype.min, logits)
    chosen_logit = tf.gather(logits, labels, axis=1, batch_dims=1)
    return outside.marked(chosen_logit - tf.reduce_logsumexp(others, axis=1))
