"""Takes gradients of a few examples and checks that they are right."""

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
_MOST_BATCHES = 40  # read for spot checks


def check_gradients(engine: Engine, where: str) -> None:
    """Compares gradients of a few examples, taken in several ways.

    The first examples are compared variable by variable; then examples from all
    of the data are compared alone and in their batches.

    Args:
        engine: the model, with the weights to check, and its training data.
        where: description of these weights, for errors.

    Raises:
        ValueError: if a gradient is NaN or infinite, naming the reason; or
            whatever `keras_tracin.engine.looking.look` raises.
    """
    steps, batch = engine.train_steps, engine.train.sample(EXAMPLES)
    steps.captured.get_concrete_function()  # `look` reads its trace
    look(engine)
    lengths = steps.squared_norms(batch.data, np.float32(1)).numpy()
    if not np.isfinite(lengths).all():
        suspect = Suspect("training", batch, steps)
        raise not_finite(engine.model, [suspect], where)

    def gradient_lengths(data: Any) -> np.ndarray:
        return np.sqrt(steps.squared_norms(data, np.float32(1)).numpy())

    spots = SpotChecks(engine.model, engine.loss, engine.execution.jit_compile)
    batches = itertools.islice(engine.train.batches(_BATCH), _MOST_BATCHES)
    for number, batch in enumerate(batches):
        if spots.wants(number):
            spots.look(
                number, batch, gradient_lengths(batch.data), gradient_lengths
            )
