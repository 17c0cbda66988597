"""The strongest training examples of each query.

Synopsis:

    top = tracin.top_k(test, k=5)            # TopK
    top.proponents.ids                       # [num_test, 5]
    top.opponents.scores                     # [num_test, 5]
    top.opponents.overlap                    # 1: the same for every query
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved
from keras_tracin.storage.arrays import save_arrays

_PARTS = ("ids", "scores")
_PRINTED = 5  # queries, and training examples of each side, that are printed


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The best of one side, for each query.

    Attributes:
        ids: `[m, k]` ids of training examples, the strongest first.
        scores: `[m, k]` their scores.
    """

    ids: np.ndarray
    scores: np.ndarray

    def __repr__(self) -> str:
        m, k = self.ids.shape
        return f"<Ranking of {k} training examples for each of {m} queries>"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def overlap(self) -> float:
        """Share of the training examples that two queries have in common.

        The mean over all pairs of queries, from 0 to 1. By chance it is `k`
        over the number of training examples. NaN for a single query.
        """
        m, k = self.ids.shape
        if m < 2:
            return float("nan")
        _, counts = np.unique(self.ids, return_counts=True)
        return float(np.sum(counts * (counts - 1)) / (m * (m - 1) * k))

    def most_common(self, count: int = 5) -> dict[Any, int]:
        """The training examples that most queries have.

        Args:
            count: number of training examples.

        Returns:
            The number of queries of each, by id, the largest first.
        """
        ids, queries = np.unique(self.ids, return_counts=True)
        order = np.argsort(-queries, kind="stable")[:count]
        pairs = zip(ids[order].tolist(), queries[order].tolist(), strict=True)
        return dict(pairs)


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

    def __repr__(self) -> str:
        m, k = self.proponents.ids.shape
        return f"<TopK of {m} queries: {k} proponents and opponents of each>"

    def __str__(self) -> str:
        """The ids and scores of the first queries, in lines to be read."""
        lines = [repr(self)]
        for row, query in enumerate(self.query_ids[:_PRINTED]):
            lines.append(f"query {query}")
            for side in ("proponents", "opponents"):
                ranking = getattr(self, side)
                pairs = zip(ranking.ids[row], ranking.scores[row], strict=True)
                strongest = [f"{id_} ({score:+.3g})" for id_, score in pairs]
                more = ", …" if len(strongest) > _PRINTED else ""
                listed = ", ".join(strongest[:_PRINTED])
                lines.append(f"  {side + ':':<12}{listed}{more}")
        if len(self) > _PRINTED:
            lines.append(f"… and {len(self) - _PRINTED} more queries")
        return "\n".join(lines)

    def __len__(self) -> int:
        return len(self.query_ids)

    @classmethod
    def concat(cls, blocks: Sequence[TopK]) -> TopK:
        """The queries of several results, one after another.

        Args:
            blocks: the results, with the same `k`.
        """

        def join(side: str) -> Ranking:
            rankings = [getattr(block, side) for block in blocks]
            return Ranking(
                ids=np.concatenate([ranking.ids for ranking in rankings]),
                scores=np.concatenate([r.scores for r in rankings]),
            )

        return cls(
            proponents=join("proponents"),
            opponents=join("opponents"),
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
        stored = load_saved(path, ("query_ids", *names))
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
        pd = pandas()
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
