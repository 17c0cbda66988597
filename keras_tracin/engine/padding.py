"""Whether padding examples further changes what a model makes of them.

Synopsis:

    examples.pad(lambda *pair: is_paddable(model, loss, *pair, "train"))
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.gradients.capture import PerExampleLoss

_TOLERANCE = 1e-3  # of the largest loss, or the largest entry of a gradient


def is_paddable(
    model: keras.Model,
    loss: PerExampleLoss,
    short: Batch,
    padded: Batch,
    name: str,
) -> bool:
    """Whether a model takes examples of several lengths, padded to one.

    Args:
        model: the model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        short: examples as they are.
        padded: the same examples, padded to the longest.
        name: name of the data, for errors.

    Returns:
        False if the model or loss does not take one of the two.

    Raises:
        ValueError: if their losses or gradients differ.
    """
    try:
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
        "what is padding (`mask_zero=True`, `keras.layers.Masking`), or "
        "train on one length, `.padded_batch(..., "
        "padded_shapes=...)`."
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
