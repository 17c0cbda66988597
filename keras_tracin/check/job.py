"""A small part of the job, done, to see if its gradients are right."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from keras_tracin.engine.diagnosis import Suspect, not_finite
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.first_look import EXAMPLES
from keras_tracin.engine.looking import look
from keras_tracin.engine.spot_checks import SpotChecks

_BATCH = 256
_MOST = 40  # batches that are read


def check_gradients(engine: Engine, where: str) -> None:
    """Takes the gradients of a few examples, by variable, in several ways.

    Then those of some from all of the data, alone and in their batches.

    Args:
        engine: the model, with the weights to look at, and its training data.
        where: these weights in words.

    Raises:
        ValueError: if a gradient is NaN or infinite, naming the reason; as
            `keras_tracin.engine.looking.look`.
    """
    steps, batch = engine.train_steps, engine.train.sample(EXAMPLES)
    steps.captured.get_concrete_function()  # what tells variables apart
    look(engine)
    lengths = steps.squared_norms(batch.data, np.float32(1)).numpy()
    if not np.isfinite(lengths).all():
        suspect = Suspect("training", batch, steps)
        raise not_finite(engine.model, [suspect], where)

    def lengths_of(data: Any) -> np.ndarray:
        return np.sqrt(steps.squared_norms(data, np.float32(1)).numpy())

    spots = SpotChecks(engine.model, engine.loss, engine.execution.jit_compile)
    batches = itertools.islice(engine.train.batches(_BATCH), _MOST)
    for number, batch in enumerate(batches):
        if spots.wants(number):
            spots.look(number, batch, lengths_of(batch.data), lengths_of)
