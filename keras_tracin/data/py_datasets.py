"""Examples that are read from a `keras.utils.PyDataset`.

An example's id is its position when batches are read from 0 on. That is the
order the dataset has at present: one whose `on_epoch_end` shuffles has another
after each epoch of `fit`, but none while it is scored.

Synopsis:

    examples = PyDatasetExamples(dataset, "train")
    for batch in examples.batches(128):
        batch.ids, batch.x, batch.y, batch.sample_weight
"""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples, join
from keras_tracin.data.datasets import check_alike, same_values
from keras_tracin.data.structure import as_array, check_lengths, unpack


class PyDatasetExamples(Examples):
    """The examples of a `PyDataset`, read batch by batch as they are needed.

    With `workers` above one, that many threads read ahead, as in `fit`.

    Args:
        data: the dataset.
        name: name of the data, for errors.
        labels: whether labels are required.

    Raises:
        ValueError: if it is empty or never ends, or if a batch is another each
            time it is read.
    """

    carries_ids = False

    def __init__(
        self, data: keras.utils.PyDataset, name: str, labels: bool = True
    ):
        self.name, self._data, self._labels = name, data, labels
        if data.num_batches is None:
            raise ValueError(
                f"`{name}` never ends: its `num_batches` is None. Pass a "
                "dataset with a number of batches, `steps_per_epoch` of them "
                "for instance."
            )
        if data.num_batches == 0:
            raise ValueError(
                f"`{name}` is empty: received a {type(data).__name__} of no "
                "batches, expected at least one."
            )
        first, again = (Batch(np.zeros(0), *self._parts(0)) for _ in range(2))
        self._check_same(first, again)
        count = len(tf.nest.flatten(first.data)[0])
        self.size = None
        self.bytes_read_per_example = first.nbytes // count

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """As `Examples.batches`."""
        kept: list[Batch] = []
        for batch in self._own_batches():
            kept.append(batch)
            while sum(map(len, kept)) >= batch_size:
                whole = join(kept)
                yield whole.take(np.arange(batch_size))
                rest = np.arange(batch_size, len(whole))
                kept = [whole.take(rest)] if len(rest) else []
        if kept:
            yield join(kept)

    def _own_batches(self) -> Iterator[Batch]:
        """The batches as the dataset cuts them, with ids."""
        position, first = 0, None
        for parts in self._read():
            leaves = [p for p in tf.nest.flatten(parts) if p is not None]
            count = len(leaves[0])
            ids = np.arange(position, position + count)
            shapes = [tuple(leaf.shape[1:]) for leaf in leaves]
            first = first or shapes
            check_alike(first, shapes, ids, self.name)
            position += count
            yield Batch(ids, *parts)

    def _read(self) -> Iterator[tuple[Any, ...]]:
        """The parts of each batch in order, some of them read ahead."""
        numbers = iter(range(self._data.num_batches))
        if self._data.workers <= 1:
            yield from map(self._parts, numbers)
            return
        ahead: collections.deque = collections.deque()
        with concurrent.futures.ThreadPoolExecutor(self._data.workers) as pool:
            for at in itertools.islice(numbers, self._data.max_queue_size):
                ahead.append(pool.submit(self._parts, at))
            while ahead:
                parts = ahead.popleft().result()
                for at in itertools.islice(numbers, 1):
                    ahead.append(pool.submit(self._parts, at))
                yield parts

    def _parts(self, at: int) -> tuple[Any, Any, Any]:
        """`(x, y, sample_weight)` of a batch, as arrays."""
        element = self._data[at]
        parts = tf.nest.map_structure(
            as_array, unpack(element, self.name, self._labels)
        )
        check_lengths(parts, self.name)
        return parts

    def _check_same(self, first: Batch, again: Batch) -> None:
        """Refuses a dataset whose first batch differs when read again."""
        pairs = zip(
            tf.nest.flatten(first.data),
            tf.nest.flatten(again.data),
            strict=True,
        )
        if any(a is not None and not same_values(a, b) for a, b in pairs):
            raise ValueError(
                f"`{self.name}` gives another batch each time "
                f"`{type(self._data).__name__}.__getitem__(0)` is called, so "
                "its examples cannot be told apart by position. Take out what "
                "is random there (augmentation, shuffling) before attribution, "
                "or seed it by the index."
            )
