"""How strongly training examples influence their own loss.

Synopsis:

    scores = tracin.self_influence()         # SelfInfluence
    scores.ranking().ids[:100]               # the largest first
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np

from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved
from keras_tracin.storage.arrays import save_arrays


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

    def __repr__(self) -> str:
        return f"<SelfInfluence of {len(self)} training examples>"

    def __len__(self) -> int:
        return len(self.ids)

    def ranking(self) -> SelfInfluence:
        """The same scores, sorted with the largest first."""
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
        return cls(**load_saved(path, ("scores", "ids")))

    def to_dataframe(self):
        """A `pandas.DataFrame` of the scores, indexed by `train_id`."""
        pd = pandas()
        index = pd.Index(self.ids, name="train_id")
        return pd.DataFrame({"self_influence": self.scores}, index=index)
