"""Checks values of examples to draw."""

from __future__ import annotations

from typing import Any

import numpy as np


def column(name: str, values: Any, expected: int) -> np.ndarray:
    """Values as an array; refuses another length than expected."""
    if len(values) != expected:
        raise ValueError(
            f"`{name}` should have length {expected}. Received: length "
            f"{len(values)}."
        )
    return np.asarray(values)
