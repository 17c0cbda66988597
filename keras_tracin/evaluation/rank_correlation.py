"""Spearman correlations of many pairs of columns at once."""

from __future__ import annotations

import numpy as np
import scipy


def rank_correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Spearman correlations `[m]` of the columns of two arrays `[s, m]`.

    NaN if a column does not vary.
    """
    centred = []
    for values in (left, right):
        ranks = scipy.stats.rankdata(
            values, axis=0
        )  # ties have their mean rank
        ranks -= ranks.mean(axis=0)
        length = np.linalg.norm(ranks, axis=0)
        centred.append(ranks / np.where(length == 0, np.nan, length))
    return np.sum(centred[0] * centred[1], axis=0)


def mean_correlation(correlations: np.ndarray) -> float:
    """The mean of correlations, leaving out NaN; NaN if all of them are."""
    if np.isnan(correlations).all():
        return float("nan")
    return float(np.nanmean(correlations))
