"""Retrains without proponents, to see whether predictions flip.

If scores name the examples that a prediction rests on, leaving out a few of
them flips it (Ilyas et al. 2022, sec. 4; Park et al. 2023, app. F).

Synopsis:

    result = kt.evaluation.brittleness(
        scores, train, test, fit, counts=(10, 50, 100)
    )
    result.share, result.random_share   # [3]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.evaluation.retraining import (
    check_same,
    query_values,
    read_whole,
)
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class Brittleness:
    """Margins of predictions after retraining without their proponents.

    A margin is log(p / (1 - p)) with p the probability of the label. Above zero
    the prediction is right; below zero it is wrong if there are two classes.

    Attributes:
        query_ids: ids of the queries, `[m]`.
        counts: numbers of proponents that were left out, `[r]`.
        margins: margins after training on everything, `[m]`.
        margins_without: margins after training without the proponents,
            `[m, r]`.
        random_margins: margins after training without as many random examples,
            `[m, r]`.
    """

    query_ids: np.ndarray
    counts: np.ndarray
    margins: np.ndarray
    margins_without: np.ndarray
    random_margins: np.ndarray

    @property
    def flipped(self) -> np.ndarray:
        """Flips, margins that fell from above zero to below: `[m, r]`."""
        return _flips(self.margins, self.margins_without)

    @property
    def share(self) -> np.ndarray:
        """Share of flips among margins that were above zero, `[r]`."""
        return self._share(self.flipped)

    @property
    def random_share(self) -> np.ndarray:
        """The same share if random examples are left out, `[r]`."""
        return self._share(_flips(self.margins, self.random_margins))

    def _share(self, flipped: np.ndarray) -> np.ndarray:
        right = self.margins > 0
        if not right.any():
            return np.full(len(self.counts), np.nan)
        return flipped[right].mean(axis=0)


def brittleness(
    scores: Attribution,
    train: Any,
    test: Any,
    fit: Callable[[Any], keras.Model],
    *,
    counts: Sequence[int] = (10, 50, 100),
    seed: int = 0,
) -> Brittleness:
    """Retrains without each query's strongest proponents.

    This takes `1 + r + m·r` trainings for `r` counts and `m` queries. Trainings
    should differ in nothing but their examples, as for `leave_one_out`.

    Args:
        scores: scores `[m, n]` of the queries and training examples below.
        train: training examples that were scored. They are read into memory.
        test: the queries, with one label each.
        fit: function that takes `(x, y[, sample_weight])` of the remaining
            examples, as arrays in reading order, and returns a trained
            classifier.
        counts: numbers of proponents to leave out.
        seed: seed of the random examples.

    Returns:
        A `Brittleness`.

    Raises:
        ValueError: if the scores are not of these examples and queries, or a
            count leaves nothing out, or nothing in.
    """
    data, queries = read_whole(train, "train"), read_whole(test, "test")
    check_same("training examples", scores.train_ids, data.ids)
    check_same("queries", scores.query_ids, queries.ids)
    total = len(data.ids)
    bad = [count for count in counts if not 0 < count < total]
    if bad or not len(counts):
        raise ValueError(
            f"`counts` should be from 1 to {total - 1}, with {total} training "
            f"examples. Received: {list(counts)}."
        )

    sample = queries.rows(slice(SAMPLE))

    def margins(left_out: np.ndarray, rows: slice) -> np.ndarray:
        keep = np.ones(total, bool)
        keep[left_out] = False
        model = fit(data.rows(keep))
        subset = queries.rows(rows)
        return -query_values(model, subset, "margin", None, sample)

    everyone = slice(None)
    order = np.argsort(-scores.scores, axis=1, kind="stable")
    random = np.random.default_rng(seed).permutation(total)
    without = [
        [margins(row[:count], slice(i, i + 1))[0] for count in counts]
        for i, row in enumerate(order)
    ]
    return Brittleness(
        query_ids=queries.ids,
        counts=np.asarray(counts),
        margins=margins(np.arange(0), everyone),
        margins_without=np.array(without),
        random_margins=np.stack(
            [margins(random[:count], everyone) for count in counts], axis=1
        ),
    )


def _flips(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before[:, np.newaxis] > 0) & (after <= 0)
