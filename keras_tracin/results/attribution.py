"""Scores with ids: what every method returns.

The sign is the same everywhere: a positive score means that training on the
example lowers the query's loss (a *proponent*), a negative one that it raises
it (an *opponent*).

Synopsis:

    scores = tracin.influence(test)          # Attribution [num_test, num_train]
    top = scores.top_k(5)                    # TopK
    top.proponents.ids                       # [num_test, 5]
    scores.save("scores.npz"); Attribution.load("scores.npz")
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_tracin.storage.arrays import load_arrays, save_arrays


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best of one side, for each query.

    Attributes:
        ids: `[m, k]` ids of training examples, the strongest first.
        scores: `[m, k]` their scores.
    """

    ids: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


_REMEDY = "Expected a file that `save` wrote."
_PARTS = ("ids", "scores")


@dataclasses.dataclass(frozen=True)
class TopK:
    """The strongest proponents and opponents of each query.

    Attributes:
        proponents: the highest scores, descending.
        opponents: the lowest scores, ascending.
        query_ids: `[m]`.
    """

    proponents: Ranking
    opponents: Ranking
    query_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.query_ids)

    @classmethod
    def concat(cls, blocks: Sequence[TopK]) -> TopK:
        """The queries of several results, one after another.

        Args:
            blocks: the results, with the same `k`.
        """

        def joined(side: str) -> Ranking:
            rankings = [getattr(block, side) for block in blocks]
            return Ranking(
                ids=np.concatenate([ranking.ids for ranking in rankings]),
                scores=np.concatenate([r.scores for r in rankings]),
            )

        return cls(
            proponents=joined("proponents"),
            opponents=joined("opponents"),
            query_ids=np.concatenate([block.query_ids for block in blocks]),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_arrays(
            Path(path),
            {
                "query_ids": self.query_ids,
                "proponent_ids": self.proponents.ids,
                "proponent_scores": self.proponents.scores,
                "opponent_ids": self.opponents.ids,
                "opponent_scores": self.opponents.scores,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> TopK:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        sides = ("proponent", "opponent")
        names = [f"{side}_{part}" for side in sides for part in _PARTS]
        stored = load_arrays(path, _REMEDY, ("query_ids", *names))
        proponents, opponents = (
            Ranking(**{part: stored[f"{side}_{part}"] for part in _PARTS})
            for side in sides
        )
        return cls(proponents, opponents, stored["query_ids"])

    def to_dataframe(self):
        """A `pandas.DataFrame` with a row per query, side and rank.

        Columns: `query_id`, `side` ("proponent" or "opponent"), `rank` (from
        1), `train_id`, `score`. Needs pandas.
        """
        import pandas as pd

        tables = []
        for side in ("proponent", "opponent"):
            ranking = getattr(self, side + "s")
            m, k = ranking.ids.shape
            tables.append(
                pd.DataFrame(
                    {
                        "query_id": np.repeat(self.query_ids, k),
                        "side": side,
                        "rank": np.tile(np.arange(1, k + 1), m),
                        "train_id": ranking.ids.reshape(-1),
                        "score": ranking.scores.reshape(-1),
                    }
                )
            )
        return pd.concat(tables, ignore_index=True)


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Scores of every training example for every query.

    Attributes:
        scores: `[m, n]` float array; positive = proponent.
        query_ids: `[m]`.
        train_ids: `[n]`.
    """

    scores: np.ndarray
    query_ids: np.ndarray
    train_ids: np.ndarray

    def __post_init__(self):
        shape = np.shape(self.scores)
        expected = (len(self.query_ids), len(self.train_ids))
        if shape != expected:
            raise ValueError(
                "`scores` should have one row per query and one column per "
                f"training example. Received: shape {shape}, with "
                f"{expected[0]} query ids and {expected[1]} train ids."
            )

    def __repr__(self) -> str:
        m, n = self.scores.shape
        return f"<Attribution of {m} queries to {n} training examples>"

    @classmethod
    def mean(cls, attributions: Sequence[Attribution]) -> Attribution:
        """The mean of scores by several trainings of a model.

        What is due to chance in one training, initial weights and order,
        averages out; of all one can do for the quality of scores, this helps
        most.

        Args:
            attributions: of the same queries and training examples.

        Raises:
            ValueError: if there are none, or if they differ in ids.
        """
        if not attributions:
            raise ValueError(
                "`attributions` should hold one or more. Received: none."
            )
        first = attributions[0]
        for other in attributions[1:]:
            for side in ("query_ids", "train_ids"):
                if not np.array_equal(
                    getattr(first, side), getattr(other, side)
                ):
                    raise ValueError(
                        "`attributions` should be of the same queries and "
                        "training examples, in the same order. Received "
                        f"{first!r} and {other!r}, which differ in `{side}`."
                    )
        scores = np.mean([each.scores for each in attributions], axis=0)
        return cls(scores, first.query_ids, first.train_ids)

    def top_k(self, k: int) -> TopK:
        """The `k` strongest proponents and opponents of each query.

        Equal scores keep reading order.

        Raises:
            ValueError: if `k` is not between 1 and the number of examples.
        """
        merger = TopKMerger(self.query_ids, k)
        merger.add(self.train_ids, self.scores)
        return merger.result()

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_arrays(
            Path(path),
            {
                "scores": self.scores,
                "query_ids": self.query_ids,
                "train_ids": self.train_ids,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> Attribution:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        return cls(
            **load_arrays(path, _REMEDY, ("scores", "query_ids", "train_ids"))
        )

    def to_dataframe(self):
        """A `pandas.DataFrame`, queries as rows and train ids as columns."""
        import pandas as pd

        return pd.DataFrame(
            self.scores,
            index=pd.Index(self.query_ids, name="query_id"),
            columns=pd.Index(self.train_ids, name="train_id"),
        )


@dataclasses.dataclass(frozen=True)
class SelfInfluence:
    """Each training example's influence on its own loss.

    Large values mark examples that the model had to learn by heart: rare
    ones, and wrongly labelled ones.

    Attributes:
        scores: `[n]`, not negative for TracIn.
        ids: `[n]`.
    """

    scores: np.ndarray
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def ranking(self) -> SelfInfluence:
        """The same with the largest score first."""
        order = np.argsort(-self.scores, kind="stable")
        return SelfInfluence(self.scores[order], self.ids[order])

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_arrays(Path(path), {"scores": self.scores, "ids": self.ids})

    @classmethod
    def load(cls, path: str | os.PathLike) -> SelfInfluence:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        return cls(**load_arrays(path, _REMEDY, ("scores", "ids")))

    def to_dataframe(self):
        """A `pandas.DataFrame` of the scores, indexed by `train_id`."""
        import pandas as pd

        index = pd.Index(self.ids, name="train_id")
        return pd.DataFrame({"self_influence": self.scores}, index=index)


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
        k: how many to keep on each side.
        available: how many training examples there will be, where known; a
            larger `k` is then refused before any work is done.
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
        """What counts of the next training examples, for `add_best`."""
        best = [_best(scores, ids, self._k, side) for side in _SIDES]
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
            best = [_joined(*kept, *new, self._k, s) for s, kept, new in both]
        self._sides = best

    def result(self) -> TopK:
        """The best of all that was added."""
        self._check(self._seen)
        proponents, opponents = (
            Ranking(ids=names, scores=values) for values, names in self._sides
        )
        return TopK(proponents, opponents, self._query_ids)


# What scores are multiplied by to put the best first, in ascending order.
_SIDES = (-1, 1)  # proponents, opponents

Best = tuple[np.ndarray, np.ndarray]  # scores [m, k], ids [m, k]


def _best(scores: np.ndarray, ids: np.ndarray, k: int, side: int) -> Best:
    """The first `k` of each row of `scores [m, c]`, and their `ids [c]`.

    Row by row, so that nothing else of the size of `scores` is made.
    """
    order = np.stack([_first(side * row, k) for row in scores])
    return np.take_along_axis(scores, order, axis=1), ids[order]


def _first(keys: np.ndarray, k: int) -> np.ndarray:
    """Where the `k` smallest keys are, sorted, equal ones in given order."""
    if len(keys) <= 4 * k:
        return np.argsort(keys, kind="stable")[:k]
    # Whatever ties with the k-th smallest stays in, so that the stable sort
    # alone decides between equals.
    near = np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])
    return near[np.argsort(keys[near], kind="stable")[:k]]


def _joined(scores, ids, more_scores, more_ids, k: int, side: int) -> Best:
    """The first `k` of two results, the earlier one first among equals."""
    scores, ids = np.hstack([scores, more_scores]), np.hstack([ids, more_ids])
    order = np.argsort(side * scores, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(scores, order, axis=1),
        np.take_along_axis(ids, order, axis=1),
    )
