"""Checks that a model returns the same each time it is called.

A layer may assign variables in its call, also in inference mode. If no output
depends on them, such as a counter of calls, restoring them is enough. If the
next call reads them, such as a moving average that is subtracted from inputs,
results depend on the number of calls before, and scores mean nothing.

Synopsis:

    check_steady(model, x)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.precision import last_place
from keras_tracin.models.state import HeldVariable, preserved

_MOST_SHOWN = 3
_CALLS = 8  # after which a slow drift becomes visible
# Allowed difference of results: in units of their last digit, and as a multiple
# of the difference of equal calls, on devices that add in any order.
_UNITS, _APART = 4.0, 8.0


class StateChanges(ValueError):
    """Raised for a model whose outputs depend on the calls before."""


def check_steady(model: keras.Model, x: Any) -> None:
    """Calls a model repeatedly and compares, if calls assign variables.

    The model runs in inference mode. Its variables are restored.

    Args:
        model: a built model.
        x: inputs of a few examples.

    Raises:
        StateChanges: if later calls return something else, apart from random
            numbers.
    """
    with preserved(model) as state:
        first = _outputs(model, x)
        changed = state.changed()
        if not changed:
            return
        state.restore()
        again = _outputs(model, x)
        for _ in range(_CALLS):
            state.restore(seeds_only=True)  # for the same random numbers
            after = _outputs(model, x)
    allowed = max(_APART * _distance(first, again), _rounding(first))
    if _distance(first, after) > allowed:
        raise StateChanges(_message(changed))


def _message(changed: Sequence[HeldVariable]) -> str:
    owner = changed[0].owner
    names = [variable.name for variable in changed]
    more = len(names) - _MOST_SHOWN
    shown = ", ".join(f"'{name}'" for name in names[:_MOST_SHOWN])
    return (
        f"Layer '{owner.path or owner.name}' ({type(owner).__name__}) changes "
        f"its state each time it is called, also in inference mode: variable"
        f"{'s' * (len(names) > 1)} {shown}{f' and {more} more' * (more > 0)}. "
        "What the model computes then depends on how often it was called "
        "before. Expected that a second call with `training=False` returns "
        "the same: assign variables only where `training` is true, as "
        "BatchNormalization does."
    )


def _rounding(outputs: list[np.ndarray]) -> float:
    """Largest difference to attribute to rounding."""
    return max(
        (
            _UNITS * last_place(a.dtype.name) * _size(a)
            for a in outputs
            if tf.as_dtype(a.dtype).is_floating
        ),
        default=0.0,
    )


def _size(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max(initial=0))


def _outputs(model: keras.Model, x: Any) -> list[np.ndarray]:
    return [
        tensor.numpy()
        for tensor in tf.nest.flatten(model(x, training=False))
        if tf.is_tensor(tensor)
    ]


def _distance(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """Largest difference of two outputs; infinite if shapes differ."""
    largest = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape or (a.dtype.kind not in "biufcV"):
            largest = max(largest, 0.0 if np.array_equal(a, b) else np.inf)
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        unequal = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if unequal.any():
            apart = np.nan_to_num(np.abs(a - b)[unequal], nan=np.inf)
            largest = max(largest, float(apart.max()))
    return largest
