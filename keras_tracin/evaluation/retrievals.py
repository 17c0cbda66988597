"""Measures how early rankings have the training examples that are right.

Right are those that tell a fact, hold a planted shortcut, come from the right
source, or have the query's class.

Synopsis:

    same_class = y_test[:, None] == y_train          # [num_test, num_train]
    result = kt.evaluation.retrieval(scores, same_class)
    result.reciprocal_rank.mean(), result.recall_at(10).mean()
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class Retrieval:
    """Relevant training examples in the order of their scores.

    Attributes:
        query_ids: ids of the queries, `[m]`.
        is_relevant: whether the training example at each rank is relevant,
            `[m, n]`, the highest score first; equal scores in reading order.
    """

    query_ids: np.ndarray
    is_relevant: np.ndarray

    @property
    def reciprocal_rank(self) -> np.ndarray:
        """1 / the rank of the first relevant example, `[m]`."""
        return 1 / (1 + self.is_relevant.argmax(axis=1))

    @property
    def average_precision(self) -> np.ndarray:
        """Mean precision at the ranks of the relevant examples, `[m]`."""
        found = self.is_relevant.cumsum(axis=1)
        ranks = np.arange(1, found.shape[1] + 1)
        precisions = self.is_relevant * found / ranks
        return precisions.sum(axis=1) / found[:, -1]

    def recall_at(self, k: int) -> np.ndarray:
        """Share of the relevant examples among the first `k`, `[m]`.

        Args:
            k: number of training examples that are looked at.
        """
        return self._found(k) / self.is_relevant.sum(axis=1)

    def precision_at(self, k: int) -> np.ndarray:
        """Share of relevant examples in the first `k`, `[m]`.

        Args:
            k: number of training examples that are looked at.
        """
        return self._found(k) / k

    def _found(self, k: int) -> np.ndarray:
        available = self.is_relevant.shape[1]
        if not 1 <= k <= available:
            raise ValueError(
                f"`k` should be from 1 to {available}, the number of training "
                f"examples. Received: {k!r}."
            )
        return self.is_relevant[:, :k].sum(axis=1)


def retrieval(scores: Attribution, relevant: Any) -> Retrieval:
    """Ranks training examples by score, and says which are relevant.

    Args:
        scores: scores `[m, n]`; the highest come first.
        relevant: booleans `[m, n]`, in the order of `scores`, or `[n]` if the
            same examples are relevant for all queries.

    Returns:
        A `Retrieval`.

    Raises:
        ValueError: if the shapes differ, a score is NaN, or a query has no
            relevant example.
    """
    values = np.asarray(scores.scores)
    wanted = np.asarray(relevant)
    if wanted.dtype != bool or wanted.shape not in (
        values.shape,
        values.shape[1:],
    ):
        raise ValueError(
            f"`relevant` should be booleans of the shape {values.shape} or "
            f"{values.shape[1:]}. Received: shape {wanted.shape}, dtype "
            f"{wanted.dtype}."
        )
    if np.isnan(values).any():
        raise ValueError("`scores` should be numbers. Received NaN.")
    wanted = np.broadcast_to(wanted, values.shape)
    without = scores.query_ids[~wanted.any(axis=1)]
    if len(without):
        raise ValueError(
            "`relevant` should be true for one training example or more of "
            f"each query. Received none for the queries {without[:5].tolist()}."
        )
    order = np.argsort(-values, axis=1, kind="stable")
    return Retrieval(
        scores.query_ids, np.take_along_axis(wanted, order, axis=1)
    )
