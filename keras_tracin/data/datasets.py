"""Examples that are read from a `tf.data.Dataset`.

Without ids, examples are told apart by their position in reading order, so a
dataset that gives another order each time is refused.

Synopsis:

    examples = DatasetExamples(dataset.batch(32), "train")
    for batch in examples.batches(128):
        batch.ids, batch.x, batch.y, batch.sample_weight
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.example_ids import DatasetWithIds, loses_ids
from keras_tracin.data.folder_maps import keeps_examples, keeps_rows
from keras_tracin.data.folders import Folder, is_of_folder, read_folder
from keras_tracin.data.ids import check_text
from keras_tracin.data.padding import Padding, shapes_of
from keras_tracin.data.structure import check_lengths

_AUGMENTATION = "take out shuffling and random augmentation"


# Measuring how long examples are reads all of them: once for each dataset.
_paddings: weakref.WeakKeyDictionary[tf.data.Dataset, Padding | None] = (
    weakref.WeakKeyDictionary()
)


class DatasetExamples(Examples):
    """The examples of a batched `tf.data.Dataset`, read as they are needed.

    Args:
        data: the dataset.
        name: name of the data, for errors.
        labels: whether labels are required.

    Raises:
        ValueError: if it has lost its ids, is not batched, never ends, or gives
            its examples in another order each time and carries no ids.
    """

    _padding: Padding | None = None

    def __init__(self, data: tf.data.Dataset, name: str, labels: bool = True):
        self.name, self._labels = name, labels
        self._original, folder = data, read_folder(data)
        data = data if folder is None else folder.in_order()
        self.carries_ids = isinstance(data, DatasetWithIds)
        if loses_ids(data):
            raise ValueError(
                f"`{name}` was made of a dataset with ids, but has lost them. "
                f"Received: a {type(data).__name__}. Expected what methods of "
                "the dataset with ids return; attach ids after the others, "
                "`kt.with_ids(tf.data.Dataset.zip(...), ids)`."
            )
        if not self.carries_ids:
            _check_batched(((), data.element_spec), False, name)
        self._dataset = data.paired if self.carries_ids else data.map(_pair)
        spec = self._dataset.element_spec
        _check_batched(spec, self.carries_ids, name)
        sizes = [
            leaf.shape[1:].num_elements() for leaf in tf.nest.flatten(spec)
        ]
        self._fixed_shapes = None not in sizes
        cardinality = int(data.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            raise ValueError(
                f"`{name}` never ends (it repeats). Leave out `.repeat()`, or "
                "end it by `.take(steps_per_epoch)`, with as many batches as "
                "an epoch of `fit` has."
            )
        self.size = _count_examples(spec, cardinality)
        if folder is not None:
            self.size = folder.size
        if folder is not None or not self.carries_ids:
            self._check_order(_remedy(data))
        if folder is not None:
            _check_maps(folder, name)
        first = next(self._batches_of(self._dataset.take(1)))
        self.bytes_read_per_example = first.nbytes // len(first)
        if cardinality >= 0:
            self.estimate = cardinality * len(first)

    def pad(
        self,
        accepts: Callable[[Batch, Batch], bool],
        like: Batch | None = None,
    ) -> None:
        """As `Examples.pad`."""
        if self._fixed_shapes:
            return
        if like is not None:
            padding = Padding.of(self._own_batches(), shapes_of(like))
        else:
            if self._original not in _paddings:
                _paddings[self._original] = Padding.of(self._own_batches())
            padding = _paddings[self._original]
        if padding is not None and accepts(padding.shortest, padding.example):
            self._padding = padding
            self.bytes_read_per_example = padding.bytes_per_example

    @property
    def is_padded(self) -> bool:
        """Whether examples of several lengths are padded."""
        return self._padding is not None

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """As `Examples.batches`."""
        dataset = self._dataset
        if self._fixed_shapes:
            dataset = dataset.rebatch(batch_size)
        return self._batches_of(dataset)

    def _batches_of(self, dataset: tf.data.Dataset) -> Iterator[Batch]:
        """The elements of a dataset of `(id, element)`, as batches."""
        expected = None
        for batch in self._own_batches(dataset):
            if self._padding is not None:
                batch = self._padding.pad(batch)
            shapes = shapes_of(batch)
            expected = expected or shapes
            check_alike(expected, shapes, batch.ids, self.name)
            yield batch
        if expected is None:
            raise ValueError(
                f"`{self.name}` is empty: received a dataset without elements, "
                "expected at least one batch."
            )

    def _own_batches(
        self, dataset: tf.data.Dataset | None = None
    ) -> Iterator[Batch]:
        """The batches as they come, of whatever shapes.

        Args:
            dataset: a dataset of `(id, element)`; the whole by default.
        """
        dataset = self._dataset if dataset is None else dataset
        position = 0
        for ids, element in self._read(dataset.prefetch(2)):
            x, y, sample_weight = _unpack_element(
                element, self.name, self._labels
            )
            leaves = tf.nest.flatten(element)
            if any(leaf.shape.rank == 0 for leaf in leaves):
                raise _not_batched(element, self.name)  # of unknown rank
            count = len(leaves[0])
            if any(len(leaf) != count for leaf in leaves):
                check_lengths(leaves, self.name)
            if self.carries_ids:
                ids = _readable(ids.numpy())
            else:
                ids = np.arange(position, position + count)
            position += count
            yield Batch(ids, x, y, sample_weight)

    def _read(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """The elements; where joining them fails, the reason if it is known."""
        try:
            yield from dataset
        except tf.errors.InvalidArgumentError:
            for ids, element in self._dataset:
                leaves = tf.nest.flatten(element)
                check_lengths(
                    [ids, *leaves] if self.carries_ids else leaves, self.name
                )
            raise

    def _check_order(self, remedy: str) -> None:
        """Reads the beginning twice; the same examples should come."""
        heads = (self._dataset.take(2), self._dataset.take(2))
        first, second = (tf.nest.flatten(list(self._read(h))) for h in heads)
        same = len(first) == len(second) and all(
            map(same_values, first, second)
        )
        if not same:
            raise ValueError(
                f"`{self.name}` gives its examples in another order, or "
                "changed, each time it is read, so they cannot be told apart "
                f"by position. {remedy}"
            )


def _check_maps(folder: Folder, name: str) -> None:
    """Raises ValueError unless maps keep each example with its file."""
    if not keeps_rows(folder):
        raise ValueError(
            f"Maps of the batches of `{name}` move examples to other rows, or "
            "change one by others of its batch, so the folder does not tell "
            "which file is which. Read it with `batch_size=None`, map its "
            "examples, and batch them then."
        )
    if not keeps_examples(folder):
        raise ValueError(
            f"Maps of `{name}` make another example of a file where it is read "
            "in another place, as random ones with a seed do, so there is none "
            f"that scores could be of: {_AUGMENTATION}."
        )


def _remedy(data: tf.data.Dataset) -> str:
    """What to do about a dataset whose order changes."""
    if isinstance(data, DatasetWithIds):  # a folder, without its shuffling
        return f"Only maps can do that here: {_AUGMENTATION}."
    if is_of_folder(data):
        return (
            "It was made of a folder, whose files tell examples apart if they "
            "are attached first: `kt.with_ids(folder)`, then the other "
            f"methods. Or {_AUGMENTATION}."
        )
    return (
        "Attach ids that survive shuffling, `kt.with_ids(data).shuffle(...)"
        f".batch(...)`, or {_AUGMENTATION}."
    )


def _pair(*element):
    """`(id, element)` with an empty id, for a dataset without ids."""
    size = tf.shape(tf.nest.flatten(element)[0])[:1]  # none of a scalar
    return tf.zeros(tf.concat([size, [0]], 0)), (
        element if len(element) > 1 else element[0]
    )


def same_values(a: Any, b: Any) -> bool:
    """Whether two arrays are alike to the bit; NaN is equal to itself."""
    first, second = np.asarray(a), np.asarray(b)
    if first.dtype == object:  # strings
        return first.tolist() == second.tolist()
    return first.shape == second.shape and first.tobytes() == second.tobytes()


def _readable(ids: np.ndarray) -> np.ndarray:
    """Ids as numbers or text: TensorFlow's strings come as bytes."""
    if ids.dtype != object:
        return ids
    try:
        return np.array([value.decode("utf-8") for value in ids])
    except UnicodeDecodeError:
        for at, value in enumerate(ids):
            check_text(value, f"the {at + 1}th example of a batch")
        raise


def _unpack_element(
    element: Any, name: str, labels: bool
) -> tuple[Any, Any, Any]:
    if not labels and not isinstance(element, tuple):
        return element, None, None
    if not labels and len(element) == 1:
        return element[0], None, None
    if isinstance(element, tuple) and 1 < len(element) < 4:
        return (*element, None)[:3] if len(element) == 2 else element
    raise ValueError(
        f"`{name}` should hold elements (x, y) or (x, y, sample_weight). "
        f"Received elements of structure "
        f"{tf.nest.map_structure(lambda leaf: leaf.shape, element)}."
    )


def check_alike(
    expected: list[tuple],
    received: list[tuple],
    ids: np.ndarray,
    name: str,
) -> None:
    """Raises ValueError for a batch of other shapes than the first batch's.

    Steps are compiled for those.

    Args:
        expected: shapes of the leaves of the first batch, without the axis of
            examples.
        received: those of another batch.
        ids: the ids of its examples.
        name: name of the data, for errors.
    """
    if received != expected:
        raise ValueError(
            f"All examples of `{name}` should have the same shapes. Received "
            f"{received} from id {ids[0].item()!r} on, expected {expected} as "
            "at first. Make them alike in a `.map(...)`; for sequences, "
            "`.padded_batch(..., padded_shapes=...)` with one length for all, "
            "and a mask."
        )


def _check_batched(spec, has_ids: bool, name: str) -> None:
    ids, element = spec
    leaves = tf.nest.flatten((ids, element) if has_ids else element)
    other = [leaf for leaf in leaves if not isinstance(leaf, tf.TensorSpec)]
    if other:
        raise ValueError(
            f"`{name}` should hold dense tensors. Received: {other}. Call "
            "`.map(...)` with `to_tensor` (ragged) or `tf.sparse.to_dense`."
        )
    ranks = [leaf.shape.rank for leaf in leaves]
    sizes = {
        leaf.shape[0] for leaf in leaves if leaf.shape.rank not in (None, 0)
    }
    if 0 in ranks or len(sizes - {None}) > 1:
        raise _not_batched(element, name)


def _not_batched(element: Any, name: str) -> ValueError:
    return ValueError(
        f"`{name}` is not batched: received elements of shapes "
        f"{[leaf.shape for leaf in tf.nest.flatten(element)]}. Call "
        "`.batch(...)` last, after `with_ids` where that is used."
    )


def _count_examples(spec, batches: int) -> int | None:
    """The number of examples where batches are all full, else None."""
    leading = tf.nest.flatten(spec)[-1].shape[0]
    if batches < 0 or leading is None:
        return None
    return batches * leading
