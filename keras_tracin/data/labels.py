"""Labels as people read them: one value for each example.

Synopsis:

    label_values(batch.y)                   # [n], of one-hot rows the classes
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.kinds import as_text

_MOST_VALUES = 8  # of a label


def label_values(y: Any) -> np.ndarray:
    """Labels as integers, floats or strings `[n]`.

    One-hot rows and whole floats become integers; labels of several values
    become strings, and of many values, such as tokens or images, these begin
    with the first of them.
    """
    leaves = [np.asarray(part) for part in tf.nest.flatten(y)]
    array = leaves[0].reshape(len(leaves[0]), -1)  # [n, p]
    if len(leaves) == 1 and array.shape[1] == 1:
        return plain_values(array[:, 0])
    if len(leaves) == 1 and _is_one_hot(array):
        return array.argmax(axis=1)
    return row_texts(y)


def row_texts(y: Any) -> np.ndarray:
    """The values of each label as strings `[n]`, which begin with the first."""
    leaves = [np.asarray(part) for part in tf.nest.flatten(y)]
    flat = np.concatenate(
        [leaf.reshape(len(leaf), -1).astype(object) for leaf in leaves], axis=1
    )
    count = flat.shape[1]
    end = f" … ({count:,} values)" if count > _MOST_VALUES else ""
    return np.array(
        [
            " ".join(as_text(value) for value in row) + end
            for row in flat[:, :_MOST_VALUES].tolist()
        ]
    )


def plain_values(values: np.ndarray) -> np.ndarray:
    """Converts booleans and whole floats to integers, bytes to strings."""
    if values.dtype.kind in "OSU":
        return np.array([as_text(value) for value in values.tolist()])
    if values.dtype.kind in "biu":
        return values.astype(int)
    values = values.astype(np.float64)
    is_whole = np.isfinite(values) & (values == np.round(values))
    return values.astype(int) if is_whole.all() else values


def _is_one_hot(array: np.ndarray) -> bool:
    if array.dtype.kind not in "biuf":
        return False
    ones = (array == 1).sum(axis=1)
    return bool((ones == 1).all() and np.count_nonzero(array) == len(array))
