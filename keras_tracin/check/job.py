"""A small part of the job, done, to see if its gradients are right."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from keras_tracin.engine.diagnosis import Suspect, not_finite
from keras_tracin.engine.first_look import EXAMPLES
from keras_tracin.engine.scoring import Scorer
from keras_tracin.engine.spot_checks import SpotChecks

_BATCH = 256
_MOST = 40  # batches that are read


def check_gradients(scorer: Scorer, where: str) -> None:
    """Takes the gradients of a few examples, by variable, in several ways.

    Then those of some from all of the data, alone and in their batches.

    Args:
        scorer: the model, with the weights to look at, and its training data.
        where: these weights in words.

    Raises:
        ValueError: if a gradient is NaN or infinite, naming the reason; as
            `Scorer.first_look`.
    """
    steps, batch = scorer.train_steps, scorer.train.sample(EXAMPLES)
    steps.captured.get_concrete_function()  # what tells variables apart
    scorer.first_look()
    lengths = steps.squared_norms(batch.data, np.float32(1)).numpy()
    if not np.isfinite(lengths).all():
        suspect = Suspect("training", batch, steps)
        raise not_finite(scorer.model, [suspect], where)

    def lengths_of(data: Any) -> np.ndarray:
        return np.sqrt(steps.squared_norms(data, np.float32(1)).numpy())

    spots = SpotChecks(scorer.model, scorer.loss, scorer.jit_compile)
    batches = itertools.islice(scorer.train.batches(_BATCH), _MOST)
    for number, batch in enumerate(batches):
        if spots.wants(number):
            spots.look(number, batch, lengths_of(batch.data), lengths_of)
