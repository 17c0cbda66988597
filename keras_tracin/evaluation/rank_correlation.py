"""Spearman's correlation of many pairs of columns at once."""

from __future__ import annotations

import numpy as np
import scipy.stats


def rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each column `[s]` with its like, `[m]`.

    NaN where a column does not vary.
    """
    centred = []
    for values in (one, other):
        ranks = scipy.stats.rankdata(values, axis=0)  # means among equals
        ranks -= ranks.mean(axis=0)
        length = np.linalg.norm(ranks, axis=0)
        centred.append(ranks / np.where(length == 0, np.nan, length))
    return np.sum(centred[0] * centred[1], axis=0)
