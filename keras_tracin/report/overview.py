"""What the page tells of all training examples together.

Synopsis:

    counts_by_class(issues, classes)         # or None
    dynamics_map(dynamics, train_ids, suspects.ids)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_tracin.data.lookup import locate
from keras_tracin.labels import LabelIssues, TrainingDynamics
from keras_tracin.report.labels import Classes

_MOST_POINTS = 5_000  # of examples that are not on the page


def counts_by_class(
    issues: LabelIssues, classes: Classes
) -> dict[str, Any] | None:
    """How many labels of each class are estimated to be wrong, and as what.

    Args:
        issues: the label issues.
        classes: the classes on the page.

    Returns:
        `classes`: `[class, examples, issues]` for each class that has
        examples; `pairs`: `[given, suggested, issues]`, the most frequent
        first. None where labels are no classes or their number is not known.
    """
    given, suggested = issues.given_labels, issues.suggested_labels
    if given is None or suggested is None or issues.num_issues is None:
        return None
    if given.ndim != 1 or not classes.values:
        return None
    codes = np.array(classes.codes(given), int)
    wrong = codes[: issues.num_issues]
    total, found = (
        np.bincount(part, minlength=len(classes.values))
        for part in (codes, wrong)
    )
    present = np.flatnonzero(total)
    others = np.array(classes.codes(suggested[: issues.num_issues]), int)
    both = np.stack([wrong, others], axis=1)[others != wrong]
    kinds, counts = np.unique(both, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    pairs = np.c_[kinds, counts][order].tolist()
    return {
        "classes": np.c_[present, total[present], found[present]].tolist(),
        "pairs": pairs,
    }


def dynamics_map(
    dynamics: TrainingDynamics, train_ids: np.ndarray, listed: np.ndarray
) -> dict[str, Any]:
    """The map of the training, Swayamdipta et al. 2020.

    Args:
        dynamics: how the model saw each example.
        train_ids: ids of the training examples on the page, sorted.
        listed: ids of the suspects.

    Returns:
        `of`, positions of the listed suspects on the page, and `points`,
        their `[variability, confidence]`; `others`, such points of examples
        that are not listed, of which a random part is drawn if they are many;
        and `total`, the number of all.

    Raises:
        ValueError: if a suspect is not among the examples, or if the training
            tells no probabilities or none that are finite.
    """
    xy = np.stack([dynamics.variability, dynamics.confidence], axis=1)
    if not np.isfinite(xy).all():
        raise ValueError(
            "`dynamics` should have finite probabilities. Received NaN or "
            "infinity, as of a training that diverged."
        )
    rows = np.array(locate(dynamics.ids.tolist(), listed, "dynamics"))
    others = np.delete(np.arange(len(xy)), rows)
    if len(others) > _MOST_POINTS:
        rng = np.random.default_rng(0)
        others = rng.choice(others, _MOST_POINTS, replace=False)
    return {
        "of": np.searchsorted(train_ids, listed).tolist(),
        "points": np.round(xy[rows].astype(np.float64), 3).tolist(),
        "others": np.round(xy[others].astype(np.float64), 3).tolist(),
        "total": len(xy),
    }
