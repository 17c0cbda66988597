"""Whether padding examples further changes what a model makes of them.

Synopsis:

    pad_examples(model, loss, examples)     # ValueError if it does
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.gradients.capture import PerExampleLoss
from keras_tracin.models.state import preserved

_TOLERANCE = 1e-3  # of the largest loss, or the largest entry of a gradient


def pad_examples(
    model: keras.Model, loss: PerExampleLoss, examples: Examples
) -> None:
    """Pads examples of several lengths, if there are any, to the longest.

    Args:
        model: the model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        examples: the examples.

    Raises:
        ValueError: if that changes the losses or gradients of the shortest.
    """

    def accepts(short: Batch, padded: Batch) -> bool:
        return _is_paddable(model, loss, short, padded, examples.name)

    examples.pad(accepts)


def _is_paddable(
    model: keras.Model,
    loss: PerExampleLoss,
    short: Batch,
    padded: Batch,
    name: str,
) -> bool:
    """Whether the model takes the same examples short and padded."""
    try:
        if not model.built:
            model(short.x, training=False)
        with preserved(model):
            before, gradient = _losses_and_gradient(model, loss, short)
            after, another = _losses_and_gradient(model, loss, padded)
    except (ValueError, TypeError, tf.errors.InvalidArgumentError):
        return False  # which is explained where they are scored
    if _alike(before, after) and _alike(gradient, another):
        return True
    raise ValueError(
        f"Examples of `{name}` have several lengths. Scores are of examples "
        f"that are padded to the longest, and the model '{model.name}' gives "
        f"those other losses or gradients: for id {short.ids[0].item()!r} a "
        f"loss of {before[0]:.4g} as it is, and of {after[0]:.4g} padded. Mask "
        "what is padding (`mask_zero=True`, `keras.layers.Masking`), or train "
        "on one length, `.padded_batch(..., padded_shapes=...)`."
    )


def _losses_and_gradient(
    model: keras.Model, loss: PerExampleLoss, batch: Batch
) -> tuple[np.ndarray, np.ndarray]:
    with tf.GradientTape() as tape:
        outputs = model(batch.x, training=False)
        losses = loss(batch.y, outputs, batch.sample_weight)
        # So that opposite changes of two examples do not cancel.
        factors = tf.range(1, len(batch) + 1, dtype=losses.dtype)
        total = tf.reduce_sum(losses * factors)
    variables = [v.value for v in model.trainable_variables]
    gradients = tape.gradient(total, variables)
    parts = [
        np.ravel(tf.convert_to_tensor(part))
        for part in gradients
        if part is not None
    ]
    return np.asarray(losses), np.concatenate(parts or [np.zeros(0)])


def _alike(first: np.ndarray, second: np.ndarray) -> bool:
    first, second = (a.astype("float64") for a in (first, second))
    largest = max(np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    if not np.isfinite(largest):
        return True  # which is explained where it is scored
    return bool(np.abs(first - second).max(initial=0) <= _TOLERANCE * largest)
