"""Training examples that come to an index later: their form and their ids.

Synopsis:

    check_form(examples, recipe)
    name = Naming(index.ids, examples.carries_ids)
    ids = [name(batch) for batch in examples.batches(256)]
"""

from __future__ import annotations

import numpy as np

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.engine.steps import kind_of
from keras_tracin.methods.indexable import RowRecipe


def check_form(examples: Examples, recipe: RowRecipe) -> None:
    """Raises ValueError unless new examples have the form of the others."""
    received = kind_of(examples.first(1).data)
    expected = kind_of(recipe.engine.train.first(1).data)
    if received != expected:
        raise ValueError(
            "New training examples should be in the form of those in the "
            f"index. Received {received}, expected {expected}."
        )


class Naming:
    """Returns the ids of new examples, and refuses ids that are taken.

    Args:
        taken: the ids in the index.
        carried: whether new examples have ids of their own.

    Raises:
        ValueError: if they have none, and those in the index do not go on.
    """

    def __init__(self, taken: np.ndarray, carried: bool):
        self._taken = set(taken.tolist())
        self._carried = carried
        self._next = 0
        if not carried and taken.dtype.kind not in "iu":
            raise ValueError(
                "The ids in the index are no numbers that could go on: "
                f"received {taken[0]!r}, for one. Attach ids to the new "
                "examples, `kt.with_ids(data, ids).batch(...)`."
            )
        if not carried:
            self._next = int(taken.max()) + 1

    def __call__(self, batch: Batch) -> np.ndarray:
        if not self._carried:
            return self._next + batch.ids
        names = batch.ids.tolist()
        again = [name for name in names if name in self._taken]
        if again or len(set(names)) < len(names):
            raise ValueError(
                "Each training example needs an id of its own. Received again: "
                f"{again[:5] or names[:5]}. `kt.with_ids(data, ids)` gives "
                "others."
            )
        self._taken.update(names)
        return batch.ids
