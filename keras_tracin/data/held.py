"""Examples that are held in memory.

Synopsis:

    held = HeldExamples((x, y), "train")
    held = HeldExamples.read(examples)
    held.take(np.array([5, 2]))                       # a batch of two
    held.positions_of(ids)                            # rows for `take`
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples, join, nbytes_of
from keras_tracin.data.ids import check_unique

_READ = 1024  # examples read at a time


class HeldExamples(Examples):
    """Examples in memory, to be read in order or by position.

    Args:
        data: `(x, y)` or `(x, y, sample_weight)`, whose leaves are arrays or
            tensors `[n, ...]`. They are not copied.
        name: name of the data, for errors.
        ids: `[n]`; by default positions.
        carries_ids: whether the ids were attached by the user.

    Attributes:
        data: `(x,)`, `(x, y)` or `(x, y, sample_weight)`.
        size: the number of examples.
    """

    bytes_read_per_example = 0  # slices of what is held already
    size: int

    def __init__(
        self,
        data: tuple[Any, ...],
        name: str = "train",
        ids: np.ndarray | None = None,
        carries_ids: bool = False,
    ):
        self.name, self.carries_ids = name, carries_ids
        self.data, self._ids = Batch(np.zeros(0), *data).data, ids
        leaves = [leaf for leaf in tf.nest.flatten(data) if leaf is not None]
        self.size = len(leaves[0])

    @classmethod
    def read(cls, examples: Examples) -> HeldExamples:
        """All examples of a source; arrays in memory are not copied."""
        held = cls.read_within(examples, math.inf)
        assert held is not None
        return held

    @classmethod
    def read_within(
        cls, examples: Examples, memory: float
    ) -> HeldExamples | None:
        """All examples of a source, or None if they do not fit.

        Args:
            examples: the source.
            memory: the number of bytes that they may take.
        """
        if isinstance(examples, HeldExamples):
            return examples if examples.nbytes <= memory else None
        batches, nbytes = [], 0
        for batch in examples.batches(_READ):
            nbytes += batch.nbytes
            if nbytes > memory:
                return None
            batches.append(batch)
        whole = join(batches)
        return cls(whole.data, examples.name, whole.ids, examples.carries_ids)

    def with_ids(self, ids: np.ndarray | None) -> HeldExamples:
        """The same examples with ids of the user's; None leaves them.

        Args:
            ids: `[n]`.
        """
        if ids is None:
            return self
        data = Batch(np.zeros(0), *self.data)
        parts = data.x, data.y, data.sample_weight
        return HeldExamples(parts, self.name, ids, carries_ids=True)

    def __len__(self) -> int:
        return self.size

    @property
    def ids(self) -> np.ndarray:
        """The ids of all examples `[n]`, in reading order."""
        return self._ids_from(0, self.size)

    @property
    def nbytes(self) -> int:
        """The size of all examples in memory."""
        return nbytes_of(self.data)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, self.size, batch_size):
            stop = min(start + batch_size, self.size)
            data = tf.nest.map_structure(
                lambda leaf, start=start, stop=stop: (
                    None if leaf is None else leaf[start:stop]
                ),
                self.data,
            )
            yield Batch(self._ids_from(start, stop), *data)

    def take(self, rows: np.ndarray) -> Batch:
        """The examples at these positions, as NumPy arrays."""
        data = tf.nest.map_structure(
            lambda leaf: None if leaf is None else np.asarray(leaf)[rows],
            self.data,
        )
        ids = np.asarray(rows) if self._ids is None else self._ids[rows]
        return Batch(ids, *data)

    def sample(self, count: int) -> Batch:
        """`count` examples from anywhere, always the same."""
        rng = np.random.default_rng(0)
        size = min(count, self.size)
        return self.take(np.sort(rng.choice(self.size, size, replace=False)))

    def positions_of(self, ids: np.ndarray) -> np.ndarray:
        """Positions `[k]` of the examples with these ids, -1 where none has.

        Raises:
            ValueError: if several examples have the same id.
        """
        known = self.ids
        check_unique(known, self.name)
        order = np.argsort(known, kind="stable")
        places = np.searchsorted(known, ids, sorter=order)
        positions = order[np.minimum(places, self.size - 1)]
        return np.where(known[positions] == ids, positions, -1)

    def _ids_from(self, start: int, stop: int) -> np.ndarray:
        if self._ids is None:
            return np.arange(start, stop)
        return self._ids[start:stop]
