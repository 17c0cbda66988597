"""Results that are put together while training examples stream by.

Synopsis:

    merger = TopKMerger(query_ids, k=10)
    merger.add(ids, scores)                  # [c], [m, c], again and again
    merger.result()                          # TopK
"""

from __future__ import annotations

import numpy as np

from keras_tracin.results.top_k import Ranking, TopK

# Factors of scores that put the best first in ascending order.
_SIDES = (-1, 1)  # proponents, opponents

Best = tuple[np.ndarray, np.ndarray]  # scores [m, k], ids [m, k]


class ScoreColumns:
    """Collects the scores of training examples while they stream by."""

    def __init__(self):
        self._ids: list[np.ndarray] = []
        self._scores: list[np.ndarray] = []

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """Takes `ids [c]` and `scores [..., c]`."""
        self._ids.append(ids)
        self._scores.append(scores)

    @property
    def ids(self) -> np.ndarray:
        """All ids, in the order they came."""
        return np.concatenate(self._ids)

    @property
    def scores(self) -> np.ndarray:
        """All scores, `[..., n]`; a single chunk is not copied."""
        if len(self._scores) == 1:
            return self._scores[0]
        return np.concatenate(self._scores, axis=-1)


class TopKMerger:
    """Keeps the best of both sides while training examples stream by.

    Args:
        query_ids: `[m]`.
        k: the number of examples to keep on each side.
        available: the number of training examples, where known; a larger `k`
            is then refused before any work is done.
    """

    def __init__(
        self, query_ids: np.ndarray, k: int, available: int | None = None
    ):
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise ValueError(
                f"`k` should be a whole number of 1 or more. Received: {k!r}."
            )
        self._query_ids = query_ids
        self._k = int(k)
        self._sides: list[Best] = []
        self._seen = 0
        if available is not None:
            self._check(available)

    def _check(self, available: int) -> None:
        if self._k > available:
            raise ValueError(
                "`k` should not exceed the number of training examples. "
                f"Received: k={self._k} with {available} examples."
            )

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """Takes `ids [c]` and `scores [m, c]` of the next training examples."""
        self.add_best(**self.best_of(ids, scores))

    def best_of(
        self, ids: np.ndarray, scores: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The best of the next training examples, to pass to `add_best`."""
        best = [_select(scores, ids, self._k, side) for side in _SIDES]
        (up, up_ids), (down, down_ids) = best
        return {
            "seen": np.array(len(ids)),
            "proponents": up,
            "proponent_ids": up_ids,
            "opponents": down,
            "opponent_ids": down_ids,
        }

    def add_best(
        self,
        seen: np.ndarray,
        proponents: np.ndarray,
        proponent_ids: np.ndarray,
        opponents: np.ndarray,
        opponent_ids: np.ndarray,
    ) -> None:
        """Takes the best of the next `seen` training examples."""
        self._seen += int(seen)
        best = [(proponents, proponent_ids), (opponents, opponent_ids)]
        if self._sides:
            both = zip(_SIDES, self._sides, best, strict=True)
            best = [_merge(*kept, *new, self._k, s) for s, kept, new in both]
        self._sides = best

    def result(self) -> TopK:
        """The best of all that was added."""
        self._check(self._seen)
        proponents, opponents = (
            Ranking(ids=names, scores=values) for values, names in self._sides
        )
        return TopK(proponents, opponents, self._query_ids)


def _select(scores: np.ndarray, ids: np.ndarray, k: int, side: int) -> Best:
    """The first `k` of each row of `scores [m, c]`, and their `ids [c]`.

    Row by row, so that nothing else of the size of `scores` is made.
    """
    order = np.stack([_smallest(side * row, k) for row in scores])
    return np.take_along_axis(scores, order, axis=1), ids[order]


def _smallest(keys: np.ndarray, k: int) -> np.ndarray:
    """Positions of the `k` smallest keys, sorted, equal ones in given order."""
    if len(keys) <= 4 * k:
        return np.argsort(keys, kind="stable")[:k]
    # Whatever ties with the k-th smallest stays in, so that the stable sort
    # alone decides between equals.
    near = np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])
    return near[np.argsort(keys[near], kind="stable")[:k]]


def _merge(scores, ids, more_scores, more_ids, k: int, side: int) -> Best:
    """The first `k` of two results, the earlier one first among equals."""
    scores, ids = np.hstack([scores, more_scores]), np.hstack([ids, more_ids])
    order = np.argsort(side * scores, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(ids, order, axis=1),
    )
