"""Whether what is mapped in a folder keeps each example with its file.

Synopsis:

    if keeps_rows(folder) and keeps_examples(folder):
        ...                  # an example is the same wherever it is read
"""

from __future__ import annotations

import numpy as np

from keras_tracin.data.folders import Folder


def keeps_rows(folder: Folder) -> bool:
    """Whether maps of batches leave every example in its row.

    Where one example of a batch is put in place of another, its own row may
    change, and no other.

    Args:
        folder: the folder.
    """
    if not folder.maps_batches:
        return True
    count = len(folder.names)
    alike = np.zeros(count, int)
    (before,) = folder.read(alike, 1)
    for place in (0, min(folder.batch_size, count) - 1):
        order = alike.copy()
        order[place] = count - 1
        (after,) = folder.read(order, 1)
        pairs = zip(before, after, strict=True)
        if any(_other_rows_differ(*pair, place) for pair in pairs):
            return False
    return True


def keeps_examples(folder: Folder) -> bool:
    """Whether the first examples are the same when they are read in turn.

    They are not where a random map has a seed, whose draws are the same at
    each reading but follow the order.

    Args:
        folder: the folder, whose maps keep rows.
    """
    first = min(2 * folder.batch_size, folder.size)
    order = np.arange(len(folder.names))
    turned = np.concatenate([order[:first][::-1], order[first:]])
    examples, again = (
        _join(folder.read(each, 2), folder.is_batched)
        for each in (order, turned)
    )
    return all(
        _same(leaf, other[::-1])
        for leaf, other in zip(examples, again, strict=True)
    )


def _join(elements: list[list[np.ndarray]], batched: bool) -> list[np.ndarray]:
    """The leaves of elements `[n, ...]`, one element after another."""
    join = np.concatenate if batched else np.stack
    alike = [
        leaves
        for leaves in zip(*elements, strict=True)
        if len({leaf.shape for leaf in leaves}) == 1  # else of several lengths
    ]
    return [join(leaves) for leaves in alike]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays are alike; NaN is equal to itself."""
    if one.dtype == object:  # texts
        return one.tolist() == other.tolist()
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _other_rows_differ(one: np.ndarray, other: np.ndarray, row: int) -> bool:
    """Whether two arrays differ in another row, as far as both go."""
    if not one.ndim or len(one) != len(other):
        return True
    shared = tuple(map(slice, np.minimum(one.shape, other.shape)))
    rest = [
        np.delete(array[shared], row, axis=0).tolist() for array in (one, other)
    ]
    return repr(rest[0]) != repr(rest[1])  # by which NaN is alike
