"""What makes an example wanted: one number of it, and the reason.

All take scores by which more is better, and order equal ones by id.

Synopsis:

    wanted = by_task(scores.scores, tasks)      # the maximum over tasks
    wanted = by_turns(scores.scores, scores.query_ids, scores.train_ids)
    wanted.scores, wanted.reasons               # [n], [n]
    best_first(wanted.scores, scores.train_ids) # positions [n]
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How wanted the examples are.

    Attributes:
        scores: `[n]`; more is better.
        reasons: a short text for each, `[n]`.
        order: positions `[n]`, the most wanted first, where that is not the
            order of the scores.
    """

    scores: np.ndarray
    reasons: np.ndarray
    order: np.ndarray | None = None

    def positions(self, ids: np.ndarray) -> np.ndarray:
        """Positions `[n]` of the examples, the most wanted first."""
        if self.order is not None:
            return self.order
        return best_first(self.scores, ids)


def best_first(scores: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Positions `[n]` in the order of scores, equal ones by id.

    Args:
        scores: `[n]`.
        ids: `[n]`.
    """
    return np.lexsort((ids, -scores))


def by_score(scores: np.ndarray, reason: str) -> Wanted:
    """One score for each example, and the same reason."""
    return Wanted(scores, np.full(len(scores), reason))


def by_task(scores: np.ndarray, tasks: np.ndarray) -> Wanted:
    """The maximum over tasks of the mean in each (Xia et al. 2024, LESS).

    Args:
        scores: `[m, n]`.
        tasks: the task of each query, `[m]`.
    """
    names, means = task_means(scores, tasks)
    best = means.argmax(axis=0)
    reasons = np.array([f"task {name}" for name in names.tolist()])
    return Wanted(means.max(axis=0), reasons[best])


def by_turns(
    scores: np.ndarray, names: np.ndarray, ids: np.ndarray, kind: str = "query"
) -> Wanted:
    """Queries or tasks take turns, each with its best that is still there.

    Args:
        scores: `[m, n]`, by queries or tasks.
        names: `[m]`.
        ids: `[n]`.
        kind: what takes turns, for the reasons.
    """
    count, n = scores.shape
    ranks = np.empty([count, n], np.int64)
    for row, own in zip(ranks, scores, strict=True):
        row[best_first(own, ids)] = np.arange(n)
    orders = np.argsort(ranks, axis=1)  # [m, n], the best first
    taker = np.full(n, -1)
    order = np.empty(n, np.int64)
    next_place = [0] * count
    for turn in range(n):
        at = turn % count
        own = orders[at]
        while taker[own[next_place[at]]] >= 0:
            next_place[at] += 1
        position = own[next_place[at]]
        taker[position], order[turn] = at, position
    reasons = np.array([f"{kind} {name}" for name in names.tolist()])
    return Wanted(scores[taker, np.arange(n)], reasons[taker], order)


def task_means(
    scores: np.ndarray, tasks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The tasks `[t]`, and the mean scores of their queries, `[t, n]`.

    Args:
        scores: `[m, n]`.
        tasks: the task of each query, `[m]`.
    """
    names, members = np.unique(tasks, return_inverse=True)
    means = [scores[members == t].mean(axis=0) for t in range(len(names))]
    return names, np.stack(means)


def quotas(labels: np.ndarray, budget: int, balance: str) -> np.ndarray:
    """How many of each class to select, `[classes]`; their sum is the budget.

    Args:
        labels: class numbers `[n]` from 0 without gaps.
        budget: how many examples in all, at most `n`.
        balance: "equal" numbers, but all of a class that has fewer;
            or "proportional" to the sizes of the classes.
    """
    sizes = np.bincount(labels)
    if balance == "proportional":
        exact = budget * sizes / len(labels)
        return _rounded(exact, budget)
    shares, open_classes = np.zeros(len(sizes)), np.ones(len(sizes), bool)
    left = float(budget)
    while open_classes.any():
        share = left / open_classes.sum()
        small = open_classes & (sizes <= share)
        if not small.any():
            shares[open_classes] = share
            break
        shares[small] = sizes[small]
        left -= float(sizes[small].sum())
        open_classes &= ~small
    return _rounded(shares, budget)


def _rounded(exact: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers whose sum is `total`, the largest remainders rounded up."""
    # A share that is whole but for rounding is that whole number.
    whole = np.floor(exact + 1e-9).astype(np.int64)
    remainders = exact - whole
    order = np.argsort(-np.round(remainders, 9), kind="stable")
    whole[order[: total - whole.sum()]] += 1
    return whole
