"""Scores of how suspicious labels are, from training dynamics.

Synopsis:

    suspicion(dynamics, "mean_loss")         # [n], higher is more suspicious
    suspicion(dynamics, ("el2n", "aum"))     # the mean of their ranks
    choose_method(dynamics)                  # a method, and why
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from keras_tracin.labels.dynamics import TrainingDynamics

METHODS: dict[str, Callable[[TrainingDynamics], np.ndarray]] = {
    "loss": lambda dynamics: dynamics.loss[-1],
    "mean_loss": lambda dynamics: dynamics.mean_loss,
    "aum": lambda dynamics: -dynamics.area_under_margin,
    "probability": lambda dynamics: 1 - dynamics.confidence,
    "el2n": lambda dynamics: np.square(dynamics.known("error")).mean(axis=0),
    "residual": lambda dynamics: dynamics.robust_residual,
}


def suspicion(
    dynamics: TrainingDynamics, method: str | Sequence[str]
) -> np.ndarray:
    """How suspicious each label is, `[n]`.

    Args:
        dynamics: the dynamics.
        method: a name in `METHODS`, or several whose ranks are averaged.

    Raises:
        ValueError: for an unknown method, or one that the dynamics do not
            have.
    """
    names = check_method(method)
    scores = [METHODS[name](dynamics) for name in names]
    return scores[0] if len(scores) == 1 else mean_rank(scores)


def check_method(method: str | Sequence[str]) -> list[str]:
    """The names of one or several scores.

    Raises:
        ValueError: if one is unknown, or there is none.
    """
    names = [method] if isinstance(method, str) else list(method)
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise ValueError(
            f"`method` should be 'auto', one of {sorted(METHODS)}, or several "
            f"of these in a list, whose ranks are averaged. Received: "
            f"{method!r}."
        )
    return names


def mean_rank(scores: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of the ranks in several scores, from above 0 to 1, `[n]`."""
    ranks = [scipy.stats.rankdata(values) for values in scores]
    return np.mean(ranks, axis=0) / len(ranks[0])


def choose_method(dynamics: TrainingDynamics) -> tuple[str, str]:
    """The method that "auto" stands for, and why.

    Args:
        dynamics: the dynamics.
    """
    if dynamics.kind == "numbers":
        return "residual", "labels are numbers"
    if len(dynamics.epochs) == 1:
        return "loss", "there is one checkpoint"
    if dynamics.error is None:
        return "aum", "outputs tell margins and no probabilities"
    return "el2n", (
        "errors over all checkpoints found most wrong labels of several kinds "
        "where this was measured"
    )
