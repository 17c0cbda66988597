"""Numbers of all training examples, looked up for some of them.

Synopsis:

    lengths = PerExample(engine.train, ids, values)
    lengths.of(chunk, engine.train)        # [c, ...]
"""

from __future__ import annotations

import numpy as np

from keras_tracin.data.batches import Examples
from keras_tracin.data.ids import Reading
from keras_tracin.engine.chunks import Chunk


class PerExample:
    """Numbers of all training examples.

    Args:
        examples: all training examples.
        ids: their ids, `[n]` in the order of a reading.
        values: their numbers, `[n, ...]`.
    """

    def __init__(self, examples: Examples, ids: np.ndarray, values: np.ndarray):
        self._examples, self._ids, self._values = examples, ids, values
        self._reading = Reading(ids, examples.name)

    def of(self, chunk: Chunk, examples: Examples) -> np.ndarray:
        """The numbers of a chunk's examples, `[c, ...]`.

        Args:
            chunk: the examples.
            examples: the examples they were read from: all for training, or
                those that were selected by their ids.

        Raises:
            ValueError: if the examples were read in another order and ids
                repeat, or if one was not among them.
        """
        if examples is self._examples:
            rows = slice(chunk.start, chunk.start + len(chunk))
            if np.array_equal(self._ids[rows], chunk.ids):
                return self._values[rows]
        return self._values[self._reading.places(chunk.ids)]
