"""The states of random numbers, which a weights file leaves out.

A layer such as Dropout counts its draws in a variable that is not among the
model's weights. With the states at the beginning of a run, every draw can be
made again.
"""

from __future__ import annotations

import keras
import numpy as np


def seed_variables(model: keras.Model) -> list[keras.Variable]:
    """The variables that hold these states, in a fixed order."""
    weights = {id(v) for v in model.weights}
    return [v for v in model.variables if id(v) not in weights]


def seed_states(model: keras.Model) -> list[np.ndarray]:
    """Their values now."""
    return [keras.ops.convert_to_numpy(v) for v in seed_variables(model)]
