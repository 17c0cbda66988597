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

from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved
from keras_tracin.results.streaming import TopKMerger
from keras_tracin.results.top_k import TopK
from keras_tracin.storage.arrays import save_arrays


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

        What is due to chance in one training, by its initial weights and its
        order, averages out. Nothing else improves scores as much.

        Args:
            attributions: scores of the same queries and training examples.

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
        scores = np.mean(
            [attribution.scores for attribution in attributions], axis=0
        )
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
        return cls(**load_saved(path, ("scores", "query_ids", "train_ids")))

    def to_dataframe(self):
        """A `pandas.DataFrame`, queries as rows and train ids as columns."""
        pd = pandas()
        return pd.DataFrame(
            self.scores,
            index=pd.Index(self.query_ids, name="query_id"),
            columns=pd.Index(self.train_ids, name="train_id"),
        )
