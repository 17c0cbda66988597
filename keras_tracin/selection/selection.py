"""Examples that were selected, the most wanted first.

Synopsis:

    selection = kt.select_examples(scores, 0.1)
    selection.ids, selection.reasons         # [k], the most wanted first
    model.fit(*selection.of((x, y)))
    selection.save("chosen.npz"); Selection.load("chosen.npz")
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from keras_tracin.data.filtering import filtered
from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved, save_fields


@dataclasses.dataclass(frozen=True)
class Selection:
    """Training examples to keep, the most wanted first.

    Attributes:
        ids: ids of the selected examples, `[k]`.
        scores: how wanted they are, `[k]`.
        weights: weights of the classes that they are of, `[k]`, with mean 1:
            with them classes that were to be balanced are, also where one had
            too few examples. 1 without balance.
        reasons: why each was selected, `[k]`, as "task 2" or "query 17".
        description: what was selected by, in words.
        left_out_ids: ids `[r]` of wanted examples that were passed over as
            near-duplicates.
        left_out_for: ids `[r]` of the selected examples that they are near to.
    """

    ids: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    reasons: np.ndarray
    description: str
    left_out_ids: np.ndarray
    left_out_for: np.ndarray

    # Booleans in reading order do not fit these scores.
    is_ranked = True

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        left_out = len(self.left_out_ids)
        passed = f", {left_out:,} near-duplicates left out" if left_out else ""
        return (
            f"<Selection of {len(self):,} examples {self.description}{passed}>"
        )

    def of(self, data: Any, *, weighted: bool = False) -> Any:
        """The selected examples of data, in the order of the data.

        Example:
        ```python
        model.fit(*selection.of((x, y)), epochs=3)
        model.fit(selection.of(kt.with_ids((x, y)).shuffle(1000).batch(32)))
        ```

        Args:
            data: what `model.fit` takes, with the ids of the examples that
                were selected among: arrays and tables give arrays and tables;
                a `tf.data.Dataset`, with ids from `kt.with_ids` or in a fixed
                order, gives a dataset that reads the user's own and keeps the
                ids; anything else is read, and the selected examples are
                returned as arrays. A dataset is read once to see that it has
                the ids.
            weighted: whether to give `weights` as sample weights, times those
                that there are.

        Raises:
            ValueError: if the data lacks one of the ids, has one twice, or
                has none to go by.
        """
        weights = self.weights if weighted else None
        return filtered(data, self.ids, weights)

    def to_dataframe(self):
        """A `pandas.DataFrame` by `train_id`, the most wanted first."""
        pd = pandas()
        columns = {
            "score": self.scores,
            "weight": self.weights,
            "reason": self.reasons,
        }
        return pd.DataFrame(columns, index=pd.Index(self.ids, name="train_id"))

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_fields(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Selection:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        arrays: dict[str, Any] = load_saved(path, names)
        return cls(**{**arrays, "description": arrays["description"].item()})
