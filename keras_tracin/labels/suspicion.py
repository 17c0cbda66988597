"""Scores of how suspicious labels are, from training dynamics.

Synopsis:

    suspicion(dynamics, "mean_loss")         # [n], higher is more suspicious
    join_scores([losses, margins])           # the mean of their ranks
    choose_methods([dynamics])               # names, and why
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import scipy

from keras_tracin.labels.dynamics import TrainingDynamics

METHODS: dict[str, Callable[[TrainingDynamics], np.ndarray]] = {
    "loss": lambda dynamics: dynamics.loss[-1],
    "mean_loss": lambda dynamics: dynamics.mean_loss,
    "aum": lambda dynamics: -dynamics.area_under_margin,
    "probability": lambda dynamics: 1 - dynamics.confidence,
    "el2n": lambda dynamics: np.square(dynamics.known("error")).mean(axis=0),
    "best_loss": lambda dynamics: _best(dynamics).mean_loss,
    "best_aum": lambda dynamics: -_best(dynamics).area_under_margin,
    "residual": lambda dynamics: dynamics.robust_residual,
}
_BEST = 4  # "best" is of the best fourth of the checkpoints


def _best(dynamics: TrainingDynamics) -> TrainingDynamics:
    return dynamics.best(-(-len(dynamics.epochs) // _BEST))


def suspicion(dynamics: TrainingDynamics, name: str) -> np.ndarray:
    """How suspicious each label is, `[n]`.

    Args:
        dynamics: the dynamics.
        name: a name in `METHODS`.

    Raises:
        ValueError: if the dynamics do not have what it needs.
    """
    return METHODS[name](dynamics)


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


def join_scores(scores: Sequence[np.ndarray]) -> np.ndarray:
    """Several scores as one: the mean of their ranks, above 0 up to 1, `[n]`.

    A single one stays as it is.
    """
    if len(scores) == 1:
        return scores[0]
    ranks = [scipy.stats.rankdata(values) for values in scores]
    return np.mean(ranks, axis=0) / len(ranks[0])


def choose_methods(models: Sequence[TrainingDynamics]) -> tuple[list[str], str]:
    """The methods that "auto" stands for, and why.

    Args:
        models: the dynamics of the run, of copies or of both.
    """
    first = models[0]
    if first.kind == "numbers":
        return ["residual"], "labels are numbers"
    if all(len(model.epochs) == 1 for model in models):
        return ["loss"], "there is one checkpoint"
    if any(model.held_out_loss is None for model in models):
        return ["mean_loss", "aum"], (
            "the run does not tell which checkpoints are best, as it would if "
            "`fit` had had `validation_data=`"
        )
    return ["best_loss", "best_aum"], (
        "wrong labels stand out where the loss on held-out examples is least"
    )
