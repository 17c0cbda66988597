"""A small part of the job, done, to see if examples depend on their batch."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from keras_tracin.check.report import Finding
from keras_tracin.diagnosis import Suspect, not_finite
from keras_tracin.gradients.interaction import rounding
from keras_tracin.scoring import Scorer

_COMPARED = 4  # examples whose gradients are taken alone and together


def compare_gradients(scorer: Scorer, where: str) -> Finding | None:
    """The gradient of an example alone, and of the same among others.

    Args:
        scorer: the model, with the weights to look at, and its training data.
        where: these weights in words.

    Raises:
        ValueError: if a gradient is NaN or infinite, naming the reason.
    """
    batch = scorer.train.first(_COMPARED)
    count = min(len(batch), _COMPARED)
    if count < 2:
        return None
    lengths = scorer.train_steps.squared_norms

    def of_rows(start: int, stop: int) -> np.ndarray:
        rows = tf.nest.map_structure(lambda leaf: leaf[start:stop], batch.data)
        return lengths(rows, np.float32(1)).numpy()

    together = of_rows(0, count)
    if not np.isfinite(together).all():
        suspect = Suspect("training", batch, scorer.train_steps)
        raise not_finite(scorer.model, [suspect], where)
    alone = np.concatenate([of_rows(i, i + 1) for i in range(count)])
    # Twice the rounding of a gradient, in a sum of many of them.
    tolerance = 10 * rounding(scorer.model)
    apart = ~np.isclose(
        alone, together, tolerance, tolerance * np.abs(together).max()
    )
    if not apart.any():
        return None
    row = int(np.flatnonzero(apart)[0])
    return Finding(
        "error",
        "job",
        "An example's gradient depends on the rest of its batch: the squared "
        f"length for id {batch.ids[row]} is {alone[row]:.6g} alone and "
        f"{together[row]:.6g} among {count}, expected the same.",
    )
