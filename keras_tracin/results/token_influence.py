"""Scores of training examples, token by token.

Synopsis:

    tokens = tracin.token_influence(test, train=[3, 17])
    tokens.scores                            # [num_test, 2, tokens]
    tokens.scores.sum(-1) + tokens.rest      # the scores of the examples
    tokens.to_dataframe()                    # by query, example and position
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from keras_tracin.results.attribution import Attribution
from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved, save_fields


@dataclasses.dataclass(frozen=True)
class TokenInfluence:
    """Which positions of training examples carry their scores.

    A position's share is that of the activations there, as inputs of the
    layers (Grosse et al. 2023, sec. 5.3): where in the text the gradient comes
    from, and not which token the model had to predict.

    Attributes:
        scores: `[m, n, tokens]`; positive = proponent.
        rest: `[m, n]`, the share of layers that have no position for each
            token, such as a head on a pooled sequence.
        query_ids: `[m]`.
        train_ids: `[n]`.
    """

    scores: np.ndarray
    rest: np.ndarray
    query_ids: np.ndarray
    train_ids: np.ndarray

    def __post_init__(self):
        expected = (len(self.query_ids), len(self.train_ids))
        shapes = np.shape(self.scores), np.shape(self.rest)
        if shapes[0][:-1] != expected or shapes[1] != expected:
            raise ValueError(
                "`scores` should have the shape [queries, training examples, "
                "tokens], and `rest` that without tokens. Received: shapes "
                f"{shapes[0]} and {shapes[1]}, with {expected[0]} query ids "
                f"and {expected[1]} train ids."
            )

    def __repr__(self) -> str:
        m, n, tokens = self.scores.shape
        return (
            f"<TokenInfluence of {m} queries to {n} training examples of "
            f"{tokens} tokens; {self.rest_share:.0%} of the scores belong to "
            "no token>"
        )

    @property
    def rest_share(self) -> float:
        """The share of `rest` in all scores, by their absolute values."""
        rest = float(np.abs(self.rest).sum(dtype=np.float64))
        tokens = np.abs(self.scores.sum(axis=-1, dtype=np.float64)).sum()
        return rest / (rest + float(tokens)) if rest else 0.0

    @property
    def attribution(self) -> Attribution:
        """The scores of whole examples, as `influence` returns them."""
        scores = self.scores.sum(axis=-1) + self.rest
        return Attribution(scores, self.query_ids, self.train_ids)

    def less(self, other: TokenInfluence) -> TokenInfluence:
        """The differences to the scores of as many other queries.

        Args:
            other: scores of the same training examples, in their order.

        Raises:
            ValueError: if there is not one query for each, or if training
                examples differ.
        """
        alike = np.array_equal(self.train_ids, other.train_ids)
        if not alike or self.scores.shape != other.scores.shape:
            raise ValueError(
                "Expected scores of as many queries, of the same training "
                f"examples in one order. Received: {self.scores.shape} and "
                f"{other.scores.shape}, of {'the same' if alike else 'other'} "
                "training examples."
            )
        return dataclasses.replace(
            self,
            scores=self.scores - other.scores,
            rest=self.rest - other.rest,
        )

    def to_dataframe(self):
        """A `pandas.DataFrame` of all scores, and of `rest` as token -1.

        Its index has `query_id`, `train_id` and `token`.
        """
        pd = pandas()
        tokens = np.arange(-1, self.scores.shape[-1])
        index = pd.MultiIndex.from_product(
            [self.query_ids, self.train_ids, tokens],
            names=["query_id", "train_id", "token"],
        )
        rest = self.rest[..., np.newaxis]
        values = np.concatenate([rest, self.scores], axis=-1)
        return pd.DataFrame({"score": values.ravel()}, index=index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_fields(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TokenInfluence:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        arrays: dict[str, Any] = load_saved(path, names)
        return cls(**arrays)
