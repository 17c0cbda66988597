"""Whether padding examples further changes what a model makes of them.

Synopsis:

    test = open_padded(model, test, "test", loss)   # ValueError if it does
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.gradients.capture import PerExampleLoss
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.state import preserved

_TOLERANCE = 1e-3  # of the largest loss, or the largest entry of a gradient


def open_padded(
    model: keras.Model,
    data: Any,
    name: str,
    loss: PerExampleLoss,
    like: Batch | None = None,
) -> Examples:
    """The examples that `model.fit(data)` would train on, of one length.

    Those of several lengths are padded to the longest.

    Args:
        model: the model.
        data: data that its `fit` takes, as in `open_for_model`.
        name: name of the data, for errors.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        like: examples that are at least as long, by whose length to go.

    Raises:
        ValueError: as `open_for_model`; or if padding changes the losses or
            gradients of the shortest examples.
        TypeError: as `open_for_model`.
    """

    def accepts(short: Batch, padded: Batch) -> bool:
        return takes_padding(model, loss, short, padded, name)

    examples = open_for_model(model, data, name)
    examples.pad(accepts, like)
    return examples


@exclusive_access
def takes_padding(
    model: keras.Model,
    loss: PerExampleLoss,
    short: Batch,
    padded: Batch,
    name: str,
) -> bool:
    """Whether the model takes the same examples short and padded.

    Args:
        model: the model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        short: some examples.
        padded: the same, padded.
        name: name of the data, for errors.

    Raises:
        ValueError: if padding changes their losses or gradients.
    """
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
