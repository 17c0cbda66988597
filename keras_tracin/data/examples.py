"""Batches with stable example ids, from whatever `model.fit` takes.

An example's id is its position in reading order, or what `with_ids` attached.
Positions mean something only if every reading gives the same order, so a
dataset that shuffles is refused unless it carries ids.

Synopsis:

    train = kt.with_ids((x, y)).shuffle(1000).batch(32)
    for batch in open_examples(train).batches(128):
        batch.ids, batch.x, batch.y, batch.sample_weight
    select(open_examples(train), np.array([7, 2]))   # only those two
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples, join
from keras_tracin.data.datasets import DatasetExamples
from keras_tracin.data.frames import as_columns, read_index
from keras_tracin.data.held import HeldExamples
from keras_tracin.data.ids import check_unique
from keras_tracin.data.iterables import is_iterable, open_iterable
from keras_tracin.data.py_datasets import PyDatasetExamples
from keras_tracin.data.structure import (
    as_array,
    check_arrays,
    check_lengths,
    unpack,
)


def open_examples(
    data: Any, name: str = "train", labels: bool = True
) -> Examples:
    """The examples in what `model.fit` would take.

    Args:
        data: one of

            - arrays `(x, y)` or `(x, y, sample_weight)`, where `x` and `y` may
              be dicts, tuples or lists of arrays; the index of a pandas
              table gives ids, unless it counts from 0;
            - a batched `tf.data.Dataset` of such elements; that of a folder
              has the names of its files as ids;
            - a `keras.utils.PyDataset`, a dataset of Grain or a PyTorch
              `DataLoader` of such batches, or a function without arguments
              that returns a generator of them.

        name: name of the data, for errors.
        labels: whether labels are required; otherwise `x` alone is accepted
            as well.

    Raises:
        ValueError: if the data is empty, infinite, unbatched, its parts
            differ in length, or its order changes and it carries no ids.
        TypeError: for anything else, such as a generator, which can be read
            only once.
    """
    if isinstance(data, tf.data.Dataset):
        return DatasetExamples(data, name, labels)
    if isinstance(data, keras.utils.PyDataset):
        return PyDatasetExamples(data, name, labels)
    iterated = open_iterable(data, name, labels)
    if iterated is not None:
        return iterated
    x, y, sample_weight = unpack(data, name, labels)
    check_arrays((x, y, sample_weight), name)
    parts = as_columns(x), y, sample_weight
    arrays = tf.nest.map_structure(as_array, parts)
    check_lengths(arrays, name)
    return HeldExamples(arrays, name).with_ids(read_index(data, name))


def is_read_batchwise(data: Any) -> bool:
    """Whether data gives batches; else it is arrays."""
    kinds = tf.data.Dataset, keras.utils.PyDataset
    return isinstance(data, kinds) or is_iterable(data)


def select(examples: Examples, ids: np.ndarray) -> Examples:
    """The examples that have one of these ids, in reading order."""
    return _SelectedExamples(examples, ids)


class _SelectedExamples(Examples):
    def __init__(self, examples: Examples, ids: np.ndarray):
        self._examples, self._ids = examples, ids
        self.name, self.size = examples.name, len(ids)
        self.bytes_read_per_example = examples.bytes_read_per_example
        self.carries_ids, self.note = examples.carries_ids, examples.note

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Full batches, since few of a batch that is read may be selected."""
        kept: list[Batch] = []
        taken: list[Any] = []
        for batch in self._examples.batches(batch_size):
            rows = np.flatnonzero(np.isin(batch.ids, self._ids))
            if not len(rows):
                continue
            taken += batch.ids[rows].tolist()
            if len(set(taken)) < len(taken):
                check_unique(np.array(taken), self.name)
            more = batch.take(rows)
            if kept and sum(map(len, kept)) + len(rows) > batch_size:
                yield join(kept)
                kept = []
            kept.append(more)
        if kept:
            yield join(kept)
