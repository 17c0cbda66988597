"""The batches of a training: `fit` reads them, and a watcher sees them first.

Synopsis:

    source = Source(train, batch_size=32, seed=0)
    source.begin(epoch)          # before `fit` starts to read it
    source.peek()                # (ids, data) of the next batch, or None;
                                 # preprocessed where the model's fit does it
    source.advance()             # once `fit` has trained on it
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.preprocessing import (
    Pipeline,
    open_for_model,
    preprocessor_of,
    raw_arrays,
)

IdsAndData = tuple[np.ndarray, Any]


class Source:
    """Training batches with their ids, in an order that can be resumed.

    Args:
        train: arrays, shuffled here, in each epoch by its number and `seed`;
            or a batched dataset with ids, in its own order.
        batch_size: for arrays.
        seed: for arrays.
        done: how many epochs of the training lie behind.
        model: the one that is trained, whose `fit` may preprocess data.

    Attributes:
        spec: the type of a batch as `fit` is given it.
        watched_spec: its type as the model's step sees it.

    Raises:
        TypeError: if `train` is a dataset without ids.
    """

    def __init__(
        self,
        train: Any,
        batch_size: int,
        seed: int,
        done: int = 0,
        model: keras.Model | None = None,
    ):
        self._seed, self._batch_size = seed, batch_size
        self._arrays: Any = None
        self._pipeline: Pipeline | None = None
        self._watched: tuple[IdsAndData, IdsAndData] | None = None
        preprocesses = model is not None and preprocessor_of(model) is not None
        if isinstance(train, DatasetWithIds):
            open_for_model(model, train)  # for its checks
            self._dataset, self.spec = train.paired, train.element_spec
            # Each reading of a shuffle is another; these were read before.
            for _ in range(done):
                iter(self._dataset)
        elif isinstance(train, tf.data.Dataset):
            raise TypeError(
                "Tracing needs to know which examples are in a batch. "
                "Received a dataset without ids; attach them first, "
                "`kt.with_ids(data).shuffle(...).batch(...)`."
            )
        else:
            examples = open_for_model(model, train)
            self._size = examples.size or 1
            self._arrays = tf.nest.map_structure(
                np.asarray,
                raw_arrays(train)
                if preprocesses
                else examples.first(self._size).data,
            )
            self.spec = tf.nest.map_structure(_open_spec, self._arrays)
        self.watched_spec = self.spec
        if model is not None and preprocesses:
            self._pipeline = Pipeline(model, self.spec)
            self.watched_spec = self._pipeline.output_spec
        self._reading = _Reading(iter(()))

    def dataset(self) -> tf.data.Dataset:
        """The batches of the epoch that was begun last, for `fit`."""
        dataset = tf.data.Dataset.from_generator(
            lambda: self._reading.elements(), output_signature=self.spec
        )
        if self._arrays is None:
            count = int(self._dataset.cardinality())
        else:
            count = -(-self._size // self._batch_size)
        if count < 0:
            return dataset
        return dataset.apply(tf.data.experimental.assert_cardinality(count))

    def begin(self, epoch: int) -> None:
        """Starts an epoch, counted from 0."""
        self._reading = _Reading(self._batches(epoch))

    def peek(self) -> IdsAndData | None:
        """Ids and data of the batch that comes next; None after the last."""
        batch = self._reading.next
        if batch is None or self._pipeline is None:
            return batch
        if self._watched is None or self._watched[0] is not batch:
            ids, element = batch
            watched = ids, self._pipeline.preprocess(element)
            self._watched = batch, watched
        return self._watched[1]

    def advance(self) -> None:
        """Goes on to the batch after it."""
        self._reading.advance()

    def _batches(self, epoch: int) -> Iterator[IdsAndData]:
        if self._arrays is None:
            for ids, element in self._dataset:
                values = ids.numpy()
                if ids.dtype == tf.string:
                    values = np.array([name.decode() for name in values])
                yield values, element
            return
        order = np.random.default_rng([self._seed, epoch]).permutation(
            self._size
        )
        for start in range(0, self._size, self._batch_size):
            ids = order[start : start + self._batch_size]
            yield (
                ids,
                tf.nest.map_structure(lambda a, i=ids: a[i], self._arrays),
            )


class _Reading:
    """One epoch's batches, kept until both readers are through with them.

    `fit` reads on a thread of `tf.data`'s.
    """

    def __init__(self, batches: Iterator[IdsAndData]):
        self._batches, self._lock = batches, threading.Lock()
        self._read: dict[int, IdsAndData | None] = {}
        self._place = 0

    def elements(self) -> Iterator[Any]:
        """The data alone, from the first batch on."""
        place = 0
        while (batch := self._get(place)) is not None:
            yield batch[1]
            place += 1

    @property
    def next(self) -> IdsAndData | None:
        return self._get(self._place)

    def advance(self) -> None:
        with self._lock:
            self._read.pop(self._place, None)
            self._place += 1

    def _get(self, place: int) -> IdsAndData | None:
        with self._lock:
            while place not in self._read:
                self._read[self._num_read] = next(self._batches, None)
            return self._read[place]

    @property
    def _num_read(self) -> int:
        return max(self._read, default=self._place - 1) + 1


def _open_spec(array: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec([None, *array.shape[1:]], array.dtype)
