"""A dataset whose elements carry ids that the model does not see.

`tf.data` moves whole elements about, so an id that is to survive a shuffle has
to travel inside of them; what reads the dataset must not be given it.

Synopsis:

    dataset = DatasetWithIds(tf.data.Dataset.zip(ids, elements))
    for element in dataset.shuffle(100).batch(8): ...        # no ids
    for ids, element in dataset.shuffle(100).batch(8).paired: ...
"""

from __future__ import annotations

import inspect
from typing import Any

import tensorflow as tf

from keras_tracin.data.provenance import made_of

_ADVICE = (
    "Call it before `kt.with_ids`, or attach ids to its result by "
    "`kt.with_ids(result, ids)`."
)

# Methods that read a dataset, or that TensorFlow makes of others here.
_READERS = frozenset(
    {
        "as_numpy_iterator",
        "cardinality",
        "fingerprint",
        "get_single_element",
        "options",
        "reduce",
    }
)
_SEVERAL = "makes several elements of one, which would have its id in common"
_REASONS = {
    "flat_map": _SEVERAL,
    "interleave": _SEVERAL,
    "window": "makes elements that are datasets",
    "save": "writes elements without their ids",
    "unique": "compares elements, which differ in their ids",
    "rejection_resample": "gives back elements of another structure",
    "sparse_batch": "makes sparse batches, which cannot be attributed",
}


class DatasetWithIds(tf.data.Dataset):
    """A dataset whose elements carry ids that their readers do not see.

    `model.fit`, iteration and `element_spec` show the elements alone. The
    transformations below move ids and elements together; any other method
    that makes a dataset raises a ValueError, since its ids would be lost.
    """

    def __init__(self, paired: tf.data.Dataset):
        self._paired = paired
        self._plain = paired.map(lambda _, element: element)
        super().__init__(self._plain._variant_tensor)

    def _inputs(self):
        return [self._plain]

    @property
    def element_spec(self):
        """The type of an element, without its id."""
        return self._plain.element_spec

    @property
    def paired(self) -> tf.data.Dataset:
        """The dataset of `(id, element)`."""
        return self._paired

    @property
    def plain(self) -> tf.data.Dataset:
        """The dataset of the elements alone."""
        return self._plain

    def map(self, map_func, *args, **kwargs):
        """Maps the elements; ids stay where they are.

        So a map of batches has to leave every example in its row.
        """

        def mapped(identifier, element):
            return identifier, map_func(*_arguments(element))

        return DatasetWithIds(self._paired.map(mapped, *args, **kwargs))

    def filter(self, predicate, name=None):
        """Keeps the elements for which `predicate` holds, and their ids."""

        def holds(_, element):
            return predicate(*_arguments(element))

        return DatasetWithIds(self._paired.filter(holds, name=name))

    def take_while(self, predicate, name=None):
        """Stops where `predicate` no longer holds; ids stay."""

        def holds(_, element):
            return predicate(*_arguments(element))

        return DatasetWithIds(self._paired.take_while(holds, name=name))

    def scan(self, initial_state, scan_func, name=None):
        """Maps the elements with a state that is carried along; ids stay."""

        def scanned(state, pair):
            identifier, element = pair
            # TensorFlow calls it with the state and the element as they are.
            state, output = scan_func(state, element)
            return state, (identifier, output)

        return DatasetWithIds(self._paired.scan(initial_state, scanned, name))

    def enumerate(self, start=0, name=None):
        """Puts a number before each element; ids stay."""
        return DatasetWithIds(
            self._paired.enumerate(start, name=name).map(
                lambda number, pair: (pair[0], (number, pair[1]))
            )
        )

    def concatenate(self, dataset, name=None):
        """Appends another dataset with ids of the same kind.

        Raises:
            ValueError: if it has no ids, or ids of another type.
        """
        if not isinstance(dataset, DatasetWithIds):
            raise ValueError(
                "Both datasets should carry ids. Received: a dataset with ids, "
                f"to which a {type(dataset).__name__} without any is appended. "
                "Attach ids to it too, or to both together: "
                "`kt.with_ids(first.concatenate(second))`."
            )
        own, other = (d.paired.element_spec[0] for d in (self, dataset))
        if own.dtype != other.dtype:
            raise ValueError(
                "Both datasets should have ids of one type. Received ids of "
                f"{own.dtype.name} and {other.dtype.name}. Convert one of them."
            )
        return DatasetWithIds(self._paired.concatenate(dataset.paired, name))

    def padded_batch(
        self,
        batch_size,
        padded_shapes=None,
        padding_values=None,
        drop_remainder=False,
        name=None,
    ):
        """Pads elements to one shape and batches them; ids stay."""
        identifier, element = self._paired.element_spec
        if padded_shapes is None:
            padded_shapes = tf.nest.map_structure(
                lambda spec: spec.shape, element
            )
        if padding_values is None:
            padding_values = tf.nest.map_structure(_nothing_like, element)
        return DatasetWithIds(
            self._paired.padded_batch(
                batch_size,
                (identifier.shape, padded_shapes),
                (_nothing_like(identifier), padding_values),
                drop_remainder,
                name,
            )
        )

    def group_by_window(
        self,
        key_func,
        reduce_func,
        window_size=None,
        window_size_func=None,
        name=None,
    ):
        """Groups elements by a key; the function of a group sees its ids.

        Raises:
            ValueError: if `reduce_func` loses them.
        """

        def reduced(key, window):
            result = reduce_func(key, DatasetWithIds(window))
            if not isinstance(result, DatasetWithIds):
                raise ValueError(_lost("group_by_window", "gives other data"))
            return result.paired

        return DatasetWithIds(
            self._paired.group_by_window(
                lambda _, element: key_func(*_arguments(element)),
                reduced,
                window_size,
                window_size_func,
                name,
            )
        )

    def bucket_by_sequence_length(self, *args, **kwargs):
        """Batches elements of like length together; ids stay."""
        # TensorFlow makes it of `group_by_window` and `padded_batch`.
        result = super().bucket_by_sequence_length(*args, **kwargs)
        return self._checked(result, "bucket_by_sequence_length")

    def apply(self, transformation_func):
        """Applies a function of a dataset; ids stay.

        Raises:
            ValueError: if the function loses them.
        """
        result = transformation_func(self)
        if isinstance(result, DatasetWithIds) or not loses_ids(result):
            return result
        if _hands_on(result, self):
            return DatasetWithIds(transformation_func(self._paired))
        return self._checked(result, "apply")

    def _checked(self, result, name: str) -> DatasetWithIds:
        if not isinstance(result, DatasetWithIds):
            raise ValueError(_lost(name, "gives a dataset without them"))
        return result


def loses_ids(dataset: Any) -> bool:
    """Whether a dataset has lost the ids of one that it was made of."""
    if isinstance(dataset, DatasetWithIds):
        return False
    pending, seen = [dataset], set()
    while pending:
        current = pending.pop()
        if isinstance(current, DatasetWithIds):
            return True
        if id(current) not in seen and isinstance(current, tf.data.Dataset):
            seen.add(id(current))
            pending += made_of(current)[0]
    return False


def _hands_on(dataset: tf.data.Dataset, source: tf.data.Dataset) -> bool:
    """Whether a dataset passes on whole elements of another, as they are."""
    while dataset is not source:
        inputs, functions = made_of(dataset)
        if len(inputs) != 1 or functions:
            return False
        if dataset.element_spec != inputs[0].element_spec:
            return False
        (dataset,) = inputs
    return True


def _arguments(element) -> tuple:
    """An element as TensorFlow gives it to a function."""
    return element if isinstance(element, tuple) else (element,)


def _nothing_like(spec: tf.TensorSpec) -> tf.Tensor:
    """The value that a tensor of this type is padded with."""
    if spec.dtype == tf.string:
        return tf.constant("")
    return tf.zeros([], spec.dtype)


def _lost(name: str, reason: str) -> str:
    return (
        f"Ids would be lost: `{name}` of a dataset with ids {reason}. {_ADVICE}"
    )


def _moving_ids(name: str):
    """A transformation that moves ids and elements together."""

    def transformation(self, *args, **kwargs):
        return DatasetWithIds(getattr(self._paired, name)(*args, **kwargs))

    transformation.__name__ = name
    transformation.__doc__ = f"`tf.data.Dataset.{name}`; ids stay."
    return transformation


def _refusing(name: str):
    """A method that raises, since ids would be lost."""
    reason = _REASONS.get(name, "is not known to keep them")

    def transformation(self, *args, **kwargs):
        raise ValueError(_lost(name, reason))

    transformation.__name__ = name
    transformation.__doc__ = f"Raises ValueError: `{name}` {reason}."
    return transformation


for _name in (
    "shuffle",
    "batch",
    "ragged_batch",
    "rebatch",
    "unbatch",
    "repeat",
    "cache",
    "prefetch",
    "take",
    "skip",
    "shard",
    "snapshot",
    "ignore_errors",
    "with_options",
):
    setattr(DatasetWithIds, _name, _moving_ids(_name))

# All other methods, those of a later TensorFlow among them.
for _name in dir(tf.data.Dataset):
    _method = inspect.getattr_static(tf.data.Dataset, _name)
    if (
        inspect.isfunction(_method)
        and not _name.startswith("_")
        and _name not in _READERS
        and _name not in vars(DatasetWithIds)
    ):
        setattr(DatasetWithIds, _name, _refusing(_name))
