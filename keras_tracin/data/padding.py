"""Examples of several lengths, padded at their end to the longest.

`padded_batch` and `bucket_by_sequence_length` pad each batch to its own longest
example, so that the same example has another length in other company. Steps are
compiled for one.

Synopsis:

    padding = Padding.of(batches)            # None where all are alike
    if padding is not None:
        padding.pad(batch)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch

Shapes = list[tuple[int, ...]]
_KEPT = 2  # examples that are looked at as they were


@dataclasses.dataclass(frozen=True)
class Padding:
    """The shapes to which examples are padded.

    Attributes:
        shapes: the largest shape of each leaf, without the axis of examples.
        shortest: some examples of the batch that has the smallest shapes.
    """

    shapes: Shapes
    shortest: Batch

    @classmethod
    def of(
        cls, batches: Iterable[Batch], least: Shapes | None = None
    ) -> Padding | None:
        """What pads some batches, None where none has to be.

        Args:
            batches: the batches.
            least: shapes to pad to, as long as none is larger.
        """
        shapes: Shapes = list(least or [])
        smallest, shortest, differ = 0, None, False
        for batch in batches:
            own = shapes_of(batch)
            if not shapes:
                shapes = own
            if [len(shape) for shape in own] != [len(s) for s in shapes]:
                return None  # of several ranks, which is refused when read
            differ = differ or own != shapes
            shapes = [
                tuple(map(max, shape, other))
                for shape, other in zip(shapes, own, strict=True)
            ]
            size = sum(int(np.prod(shape)) for shape in own)
            if shortest is None or size < smallest:
                smallest, shortest = size, batch.take(np.arange(_few(batch)))
        if shortest is None or not differ:
            return None
        return cls(shapes, shortest)

    @property
    def example(self) -> Batch:
        """The shortest examples as they are padded."""
        return self.pad(self.shortest)

    @property
    def bytes_per_example(self) -> int:
        """The size of an example in memory."""
        return self.example.nbytes // len(self.shortest)

    def pad(self, batch: Batch) -> Batch:
        """The batch with zeros, or empty texts, after its examples.

        One that is larger than the largest before stays as it is.
        """
        shapes = iter(self.shapes)
        if not all(
            np.less_equal(own, shape).all()
            for own, shape in zip(shapes_of(batch), self.shapes, strict=True)
        ):
            return batch
        data = tf.nest.map_structure(
            lambda leaf: None if leaf is None else _padded(leaf, next(shapes)),
            batch.data,
        )
        return Batch(batch.ids, *data)


def shapes_of(batch: Batch) -> Shapes:
    """The shapes of a batch's leaves, without the axis of examples."""
    return [
        tuple(leaf.shape[1:])
        for leaf in tf.nest.flatten(batch.data)
        if leaf is not None
    ]


def _few(batch: Batch) -> int:
    return min(_KEPT, len(batch))


def _padded(leaf: Any, shape: tuple[int, ...]) -> np.ndarray:
    array = np.asarray(leaf)
    if array.shape[1:] == shape:
        return array
    filler: Any = "" if array.dtype.kind in "OSU" else 0
    padded = np.full((len(array), *shape), filler, array.dtype)
    padded[tuple(map(slice, array.shape))] = array
    return padded
