"""Examples that Python gives batch by batch, cut into batches of one size.

Synopsis:

    class ReadExamples(StreamedExamples):
        def _elements(self):
            yield x, y                  # batches of any size

    examples = ReadExamples(
        "train", labels=True, described="batches", remedy="Do not shuffle."
    )
    for batch in examples.batches(128):
        batch.ids, batch.x, batch.y, batch.sample_weight
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples, join
from keras_tracin.data.datasets import check_alike, same_values
from keras_tracin.data.padding import Padding, shapes_of
from keras_tracin.data.structure import as_array, check_lengths, unpack

_LOOKED_AT = 2  # batches that are read twice, to see whether they change


class StreamedExamples(Examples):
    """Examples that are read batch by batch; their ids are positions.

    What is read is an `_elements` of the subclass, which begins anew with
    each call.

    Args:
        name: name of the data, for errors.
        labels: whether labels are required.
        described: what is read, for errors.
        remedy: what to do where batches change from one reading to the next.
        num_batches: number of batches, None where it is not known.

    Raises:
        ValueError: if there are no examples, or other ones at each reading.
    """

    carries_ids = False
    size = None
    _padding: Padding | None = None

    def __init__(
        self,
        name: str,
        labels: bool,
        described: str,
        remedy: str,
        num_batches: int | None = None,
    ):
        self.name, self._labels = name, labels
        first, again = (self._head() for _ in range(2))
        if not first:
            raise ValueError(
                f"`{name}` is empty: received {described} without "
                "batches, expected at least one."
            )
        if not _same(first, again):
            raise ValueError(
                f"`{name}`, {described}, gives other batches each time "
                "it is read, so its examples cannot be told apart by position. "
                f"{remedy}"
            )
        self._first_shapes = shapes_of(first[0])
        self._alike = shapes_of(first[-1]) == self._first_shapes
        count = len(first[0])
        self.bytes_read_per_example = first[0].nbytes // count
        if num_batches is not None:
            self.estimate = num_batches * count

    def _elements(self) -> Iterator[Any]:
        """The batches in order, from the first one on."""
        raise NotImplementedError

    def pad(
        self,
        accepts: Callable[[Batch, Batch], bool],
        like: Batch | None = None,
    ) -> None:
        """As `Examples.pad`; the first batches tell, as in `fit`."""
        least = None if like is None else shapes_of(like)
        if self._alike and least in (None, self._first_shapes):
            return
        padding = Padding.of(self._own_batches(), least)
        if padding is not None and accepts(padding.shortest, padding.example):
            self._padding = padding
            self.bytes_read_per_example = padding.bytes_per_example

    @property
    def is_padded(self) -> bool:
        """Whether examples of several lengths are padded."""
        return self._padding is not None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """As `Examples.batches`."""
        kept: list[Batch] = []
        expected = None
        for batch in self._own_batches():
            if self._padding is not None:
                batch = self._padding.pad(batch)
            shapes = shapes_of(batch)
            expected = expected or shapes
            check_alike(expected, shapes, batch.ids, self.name)
            start = 0
            while start < len(batch):
                missing = batch_size - sum(map(len, kept))
                part = _cut(batch, start, start + missing)
                kept.append(part)
                start += len(part)
                if len(part) == missing:
                    yield join(kept)
                    kept = []
        if kept:
            yield join(kept)

    def _own_batches(self) -> Generator[Batch, None, None]:
        """The batches as they come, with ids."""
        position = 0
        for element in self._elements():
            if isinstance(element, list):  # as `fit` takes it
                element = tuple(element)
            parts = tf.nest.map_structure(
                as_array, unpack(element, self.name, self._labels)
            )
            count = check_lengths(parts, self.name)
            ids = np.arange(position, position + count)
            position += count
            yield Batch(ids, *parts)

    def _head(self) -> list[Batch]:
        """The first batches as they come."""
        with contextlib.closing(self._own_batches()) as batches:
            return list(itertools.islice(batches, _LOOKED_AT))


def _same(first: list[Batch], again: list[Batch]) -> bool:
    one, other = (
        tf.nest.flatten([batch.data for batch in head])
        for head in (first, again)
    )
    return len(one) == len(other) and all(
        (a is None and b is None) or same_values(a, b)
        for a, b in zip(one, other, strict=True)
    )


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    """The examples of a batch from one position to another, not copied."""
    data = tf.nest.map_structure(
        lambda leaf: None if leaf is None else leaf[start:stop], batch.data
    )
    return Batch(batch.ids[start:stop], *data)
