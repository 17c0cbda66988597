"""When to save weights: the options of `TracInCheckpoint`.

Synopsis:

    is_selected = epoch_filter(2)
    is_selected(4, {})                     # True: every second epoch
    check_save_freq(100, epochs=None)      # 100
    scalar_metrics({"loss": 0.5})          # {"loss": 0.5}
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import numpy as np


def scalar_metrics(logs: Mapping[str, Any]) -> dict[str, float]:
    """The metrics in `logs` that are single numbers."""
    return {
        name: float(value)
        for name, value in logs.items()
        if np.ndim(value) == 0
        and np.issubdtype(np.asarray(value).dtype, np.number)
    }


def check_save_freq(save_freq: Any, epochs: Any) -> int | Literal["epoch"]:
    """Checks `save_freq` and that it is not combined with `epochs`.

    Raises:
        TypeError: if it is neither "epoch" nor an int.
        ValueError: if it is below 1, or if both arguments are given.
    """
    if save_freq == "epoch":
        return save_freq
    if isinstance(save_freq, bool) or not hasattr(save_freq, "__index__"):
        raise TypeError(
            f"Received save_freq={save_freq!r}, expected 'epoch' or a number "
            "of optimizer steps."
        )
    if operator.index(save_freq) < 1:
        raise ValueError(
            f"Received save_freq={save_freq}, expected at least 1 step."
        )
    if epochs is not None:
        raise ValueError(
            f"Received save_freq={save_freq} and epochs={epochs!r}, expected "
            "one of them: `epochs` selects among the ends of epochs."
        )
    return operator.index(save_freq)


def epoch_filter(epochs: Any) -> Callable[[int, dict], bool]:
    """The argument `epochs` as a function of the epoch and its logs.

    Raises:
        TypeError: if it is none of the accepted types.
        ValueError: if it holds numbers below 1, or no number.
    """
    if epochs is None:
        return lambda epoch, logs: True
    if callable(epochs):
        return lambda epoch, logs: bool(epochs(epoch, logs))
    is_count = hasattr(epochs, "__index__") and not np.ndim(epochs)
    values = [epochs] if is_count else epochs
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(
            f"Received epochs={epochs!r}, expected None, a number, numbers, "
            "or a callable (epoch, logs) -> bool."
        )
    numbers = list(values)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in numbers):
        raise TypeError(f"Received epochs={epochs!r}, expected whole numbers.")
    if not numbers or any(n < 1 for n in numbers):
        raise ValueError(
            f"Received epochs={epochs!r}, expected numbers from 1 on: epochs "
            "are counted from 1."
        )
    if is_count:
        return lambda epoch, logs: epoch % numbers[0] == 0
    return lambda epoch, logs: epoch in numbers
