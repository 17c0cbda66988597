"""Training again without proponents, to see whether predictions flip.

Scores that name what a prediction rests on name few examples without which it
turns (Ilyas et al. 2022, sec. 4; Park et al. 2023, app. F).

Synopsis:

    found = kt.evaluation.brittleness(
        scores, train, test, fit, counts=(10, 50, 100)
    )
    found.share, found.random_share     # [3], of the queries
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.evaluation.training_again import (
    check_same,
    query_values,
    read_whole,
)
from keras_tracin.losses.output_kinds import SAMPLE
from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class Brittleness:
    """What became of predictions without their proponents.

    Attributes:
        query_ids: `[m]`.
        counts: `[r]`, how many proponents were left out.
        margins: `[m]`, log(p / (1 - p)) of the label, trained on everything;
            above zero the prediction is right (for two classes; with more,
            then it certainly is).
        margins_without: `[m, r]`, trained without the proponents.
        random_margins: `[m, r]`, trained without as many random examples.
    """

    query_ids: np.ndarray
    counts: np.ndarray
    margins: np.ndarray
    margins_without: np.ndarray
    random_margins: np.ndarray

    @property
    def flipped(self) -> np.ndarray:
        """Whether the margin went from above zero to below, `[m, r]`."""
        return _flipped(self.margins, self.margins_without)

    @property
    def share(self) -> np.ndarray:
        """The share of flips among margins that were above zero, `[r]`."""
        return self._share(self.flipped)

    @property
    def random_share(self) -> np.ndarray:
        """The same where random examples are left out, `[r]`."""
        return self._share(_flipped(self.margins, self.random_margins))

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
    """Trains again without each query's strongest proponents.

    There are `1 + r + m·r` trainings, so take few queries and counts.
    Training should be the same each time but for the examples, as for
    `leave_one_out`.

    Args:
        scores: of these queries (the rows) and training examples.
        train: what the scores were made with. It is read into memory.
        test: the queries, with one label each.
        fit: takes `(x, y[, sample_weight])` of the examples that are left,
            as arrays in reading order, and returns a trained classifier.
        counts: how many proponents to leave out.
        seed: that of the random examples.

    Returns:
        A `Brittleness`.

    Raises:
        ValueError: if the scores are not of these examples and queries, or a
            count leaves nothing out, or nothing in.
    """
    data, asked = read_whole(train, "train"), read_whole(test, "test")
    check_same("training examples", scores.train_ids, data.ids)
    check_same("queries", scores.query_ids, asked.ids)
    total = len(data.ids)
    bad = [count for count in counts if not 0 < count < total]
    if bad or not len(counts):
        raise ValueError(
            f"`counts` should be from 1 to {total - 1}, with {total} training "
            f"examples. Received: {list(counts)}."
        )

    sample = asked.rows(slice(SAMPLE))

    def margins(left_out: np.ndarray, queries: slice) -> np.ndarray:
        keep = np.ones(total, bool)
        keep[left_out] = False
        model = fit(data.rows(keep))
        some = asked.rows(queries)
        return -query_values(model, some, "margin", None, sample)

    everyone = slice(None)
    order = np.argsort(-scores.scores, axis=1, kind="stable")
    random = np.random.default_rng(seed).permutation(total)
    without = [
        [margins(row[:count], slice(at, at + 1))[0] for count in counts]
        for at, row in enumerate(order)
    ]
    return Brittleness(
        query_ids=asked.ids,
        counts=np.asarray(counts),
        margins=margins(np.arange(0), everyone),
        margins_without=np.array(without),
        random_margins=np.stack(
            [margins(random[:count], everyone) for count in counts], axis=1
        ),
    )


def _flipped(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before[:, np.newaxis] > 0) & (after <= 0)
