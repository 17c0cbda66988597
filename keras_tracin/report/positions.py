"""Ids and scores as the page stores them.

Synopsis:

    train_ids = distinct(top_k.proponents.ids, top_k.opponents.ids)
    positions(top_k.proponents.ids, train_ids)
    numbers(top_k.proponents.scores)
"""

from __future__ import annotations

import numpy as np


def distinct(*ids: np.ndarray) -> np.ndarray:
    """The distinct ids, sorted."""
    return np.unique(np.concatenate([array.reshape(-1) for array in ids]))


def positions(ids: np.ndarray, sorted_ids: np.ndarray) -> list:
    """Positions of `ids` in `sorted_ids`, which contains them all."""
    return np.searchsorted(sorted_ids, ids).tolist()


def numbers(scores: np.ndarray) -> list:
    """Scores as floats with no more digits than their precision has.

    Raises:
        ValueError: if one is not finite.
    """
    if not np.isfinite(scores).all():
        raise ValueError("Scores should be finite. Received NaN or infinity.")
    # By way of strings: 0.1 in single precision is 0.1, and not 0.100000001.
    return scores.astype(str).astype(np.float64).tolist()
