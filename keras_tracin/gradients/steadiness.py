"""Whether a model computes the same each time it is called.

A layer may assign variables in its call, also in inference mode. Where nothing
reads them again, as a count of calls, they are put back after each look and do
no harm. Where the next call reads them, as a moving average that inputs are
centred by, what is computed depends on how often the model was called before,
and no score means anything.

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
from keras_tracin.models.state import Held, preserved

_MOST_SHOWN = 3
_CALLS = 8  # after which a drift shows that one call hides
# By how much results may differ: in units of their last place, and as a
# multiple of what equal calls do on devices that add up in any order.
_UNITS, _APART = 4.0, 8.0


class StateChanges(ValueError):
    """A model that changes what it computes each time it is called."""


def check_steady(model: keras.Model, x: Any) -> None:
    """Calls a model in inference mode and compares, if it assigned variables.

    The variables are as before afterwards.

    Args:
        model: a built model.
        x: a few of its inputs.

    Raises:
        StateChanges: if another call, with the variables as the first one
            left them, returns something else; random numbers aside.
    """
    with preserved(model) as state:
        first = _outputs(model, x)
        changed = state.changed()
        if not changed:
            return
        state.restore()
        again = _outputs(model, x)
        for _ in range(_CALLS):
            state.restore(seeds_only=True)  # the same numbers are drawn
            after = _outputs(model, x)
    allowed = max(_APART * _distance(first, again), _rounding(first))
    if _distance(first, after) > allowed:
        raise StateChanges(_message(changed))


def _message(changed: Sequence[Held]) -> str:
    owner = changed[0].owner
    names = [held.name for held in changed]
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
    """What the last places of results may differ by."""
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


def _distance(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    """The largest difference of two calls; infinite between other shapes."""
    largest = 0.0
    for a, b in zip(one, other, strict=True):
        if a.shape != b.shape or (a.dtype.kind not in "biufcV"):
            largest = max(largest, 0.0 if np.array_equal(a, b) else np.inf)
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        unequal = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if unequal.any():
            apart = np.nan_to_num(np.abs(a - b)[unequal], nan=np.inf)
            largest = max(largest, float(apart.max()))
    return largest
