"""The batches of a training, which an observer sees before `fit` does.

Synopsis:

    batches = TrainingBatches(train, batch_size=32, seed=0)
    batches.start_epoch(0)       # before `fit` starts to read it
    batches.peek()               # (ids, data) of the next batch, or None;
                                 # preprocessed if the model's `fit` does so
    batches.advance()            # once `fit` has trained on it
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.frames import read_index
from keras_tracin.data.preprocessing import (
    Pipeline,
    open_for_model,
    preprocessor_of,
    raw_arrays,
)

IdsAndData = tuple[np.ndarray, Any]


class TrainingBatches:
    """Training batches with their ids, in an order that can be resumed.

    Args:
        train: arrays, shuffled here, in each epoch by its number and `seed`;
            or a batched dataset with ids, in its own order.
        batch_size: batch size for arrays.
        seed: seed of the order of arrays.
        epochs_read: number of epochs that were read before, in a training
            that is continued.
        model: the model to train, whose `fit` may preprocess data.

    Attributes:
        spec: type of a batch that `fit` is given.
        step_spec: type of a batch that the training step is given, after
            preprocessing.

    Raises:
        TypeError: if `train` is a dataset without ids, or read by Python.
    """

    def __init__(
        self,
        train: Any,
        batch_size: int,
        seed: int,
        epochs_read: int = 0,
        model: keras.Model | None = None,
    ):
        self._seed, self._batch_size = seed, batch_size
        self._arrays: Any = None
        self._pipeline: Pipeline | None = None
        self._preprocessed: tuple[IdsAndData, IdsAndData] | None = None
        preprocesses = model is not None and preprocessor_of(model) is not None
        if isinstance(train, DatasetWithIds):
            open_for_model(model, train)  # for its checks
            self._dataset, self.spec = train.paired, train.element_spec
            # A shuffled dataset has another order at each reading: skip the
            # orders of the epochs before.
            for _ in range(epochs_read):
                iter(self._dataset)
        elif isinstance(train, tf.data.Dataset):
            raise TypeError(
                "Tracing needs to know which examples are in a batch. "
                "Received a dataset without ids; attach them first, "
                "`kt.with_ids(data).shuffle(...).batch(...)`."
            )
        else:
            examples = open_for_model(model, train)
            if examples.size is None:
                raise TypeError(
                    "Tracing shuffles examples by itself, so it needs arrays, "
                    f"or a dataset with ids. Received a "
                    f"{type(train).__name__}, which is read batch by batch. "
                    "Hold its examples in arrays, or make a "
                    "`tf.data.Dataset` for `kt.with_ids(data)`."
                )
            self._size = examples.size
            index = read_index(train, "train")
            self._ids = np.arange(self._size) if index is None else index
            self._arrays = tf.nest.map_structure(
                np.asarray,
                raw_arrays(train)
                if preprocesses
                else examples.first(self._size).data,
            )
            self.spec = tf.nest.map_structure(_open_spec, self._arrays)
        self.step_spec = self.spec
        if model is not None and preprocesses:
            self._pipeline = Pipeline(model, self.spec)
            self.step_spec = self._pipeline.output_spec
        self._reader = _EpochReader(iter(()))

    def dataset(self) -> tf.data.Dataset:
        """The batches of the current epoch, for `fit`."""
        dataset = tf.data.Dataset.from_generator(
            lambda: self._reader.elements(), output_signature=self.spec
        )
        if self._arrays is None:
            count = int(self._dataset.cardinality())
        else:
            count = -(-self._size // self._batch_size)
        if count < 0:
            return dataset
        return dataset.apply(tf.data.experimental.assert_cardinality(count))

    def start_epoch(self, epoch: int) -> None:
        """Starts an epoch, counted from 0."""
        self._reader = _EpochReader(self._batches(epoch))

    def peek(self) -> IdsAndData | None:
        """Ids and data of the next batch; None after the last."""
        batch = self._reader.next
        if batch is None or self._pipeline is None:
            return batch
        if self._preprocessed is None or self._preprocessed[0] is not batch:
            ids, element = batch
            preprocessed = ids, self._pipeline.preprocess(element)
            self._preprocessed = batch, preprocessed
        return self._preprocessed[1]

    def advance(self) -> None:
        """Moves on to the following batch."""
        self._reader.advance()

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
            rows = order[start : start + self._batch_size]
            yield (
                self._ids[rows],
                tf.nest.map_structure(lambda a, i=rows: a[i], self._arrays),
            )


class _EpochReader:
    """Batches of an epoch, kept until `fit` and the observer have read them.

    `fit` reads on a thread of `tf.data`.
    """

    def __init__(self, batches: Iterator[IdsAndData]):
        self._batches, self._lock = batches, threading.Lock()
        self._cache: dict[int, IdsAndData | None] = {}
        self._position = 0

    def elements(self) -> Iterator[Any]:
        """Data of all batches, without ids."""
        position = 0
        while (batch := self._get(position)) is not None:
            yield batch[1]
            position += 1

    @property
    def next(self) -> IdsAndData | None:
        return self._get(self._position)

    def advance(self) -> None:
        with self._lock:
            self._cache.pop(self._position, None)
            self._position += 1

    def _get(self, position: int) -> IdsAndData | None:
        with self._lock:
            while position not in self._cache:
                self._cache[self._num_read] = next(self._batches, None)
            return self._cache[position]

    @property
    def _num_read(self) -> int:
        return max(self._cache, default=self._position - 1) + 1


def _open_spec(array: np.ndarray) -> tf.TensorSpec:
    return tf.TensorSpec([None, *array.shape[1:]], array.dtype)
