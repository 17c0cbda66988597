"""A dataset whose elements carry ids that the model does not see.

`tf.data` moves whole elements about, so an id that is to survive a shuffle has
to travel inside of them; what reads the dataset must not be given it.

Synopsis:

    dataset = DatasetWithIds(tf.data.Dataset.zip(ids, elements))
    for element in dataset.shuffle(100).batch(8): ...        # no ids
    for ids, element in dataset.shuffle(100).batch(8).paired: ...
"""

from __future__ import annotations

import tensorflow as tf


class DatasetWithIds(tf.data.Dataset):
    """A dataset whose elements carry ids that their readers do not see.

    `model.fit`, iteration and `element_spec` show the elements alone. The
    transformations below move ids and elements together; any other returns a
    plain dataset, without ids.
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

    def map(self, map_func, *args, **kwargs):
        """Maps the elements; ids stay."""

        def mapped(identifier, element):
            inputs = element if isinstance(element, tuple) else (element,)
            return identifier, map_func(*inputs)

        return DatasetWithIds(self._paired.map(mapped, *args, **kwargs))

    def filter(self, predicate, name=None):
        """Keeps the elements for which `predicate` holds, and their ids."""

        def holds(_, element):
            inputs = element if isinstance(element, tuple) else (element,)
            return predicate(*inputs)

        return DatasetWithIds(self._paired.filter(holds, name=name))

    def apply(self, transformation_func):
        """Applies a function of a dataset; ids stay if it keeps them."""
        return transformation_func(self)


def _together(name: str):
    def transformation(self, *args, **kwargs):
        return DatasetWithIds(getattr(self._paired, name)(*args, **kwargs))

    transformation.__name__ = name
    transformation.__doc__ = f"`tf.data.Dataset.{name}`; ids stay."
    return transformation


for _name in (
    "shuffle",
    "batch",
    "rebatch",
    "unbatch",
    "repeat",
    "cache",
    "prefetch",
    "take",
    "skip",
    "shard",
    "with_options",
):
    setattr(DatasetWithIds, _name, _together(_name))
