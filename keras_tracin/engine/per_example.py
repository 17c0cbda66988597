"""Numbers of all training examples, looked up for some of them.

Synopsis:

    lengths = PerExample(engine.train, ids, values)
    lengths.of(chunk, engine.train)        # [c]
"""

from __future__ import annotations

import functools

import numpy as np

from keras_tracin.data.batches import Examples
from keras_tracin.engine.chunks import Chunk


class PerExample:
    """Numbers of all training examples.

    Args:
        examples: all training examples.
        ids: their ids, `[n]` in reading order.
        values: their numbers, `[n]`.
    """

    def __init__(self, examples: Examples, ids: np.ndarray, values: np.ndarray):
        self._examples, self._ids, self._values = examples, ids, values

    def of(self, chunk: Chunk, examples: Examples) -> np.ndarray:
        """The numbers of a chunk's examples, `[c]`.

        Args:
            chunk: the examples.
            examples: the examples they were read from: all for training, or
                those that were selected by their ids.
        """
        if examples is self._examples:
            return self._values[chunk.start : chunk.start + len(chunk)]
        places, known = self._by_id
        return self._values[places[np.searchsorted(known, chunk.ids)]]

    @functools.cached_property
    def _by_id(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the ids in increasing order, and the ids in this order."""
        places = np.argsort(self._ids, kind="stable")
        return places, self._ids[places]
