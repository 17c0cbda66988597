"""Some examples of what `model.fit` takes, by their ids.

Synopsis:

    x, y = filtered((x, y), np.array([7, 2]))
    dataset = filtered(kt.with_ids((x, y)).shuffle(100).batch(8), ids)
    x, y, sample_weight = filtered((x, y), ids, weights)
    x, y = filtered((x, y), ids, labels=NewLabels(np.array([2]), np.array([1])))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import join
from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.examples import (
    is_read_batchwise,
    open_examples,
    select,
)
from keras_tracin.data.folders import read_folder
from keras_tracin.data.frames import is_pandas
from keras_tracin.data.ids import check_unique
from keras_tracin.data.lookup import locate

_READ = 1024  # examples read at a time


@dataclasses.dataclass(frozen=True)
class NewLabels:
    """Labels that replace those of some examples.

    Attributes:
        ids: distinct ids `[m]`.
        values: labels `[m, ...]`, with shape and type as in the data, whose
            labels are one array.
    """

    ids: np.ndarray
    values: np.ndarray


def filtered(
    data: Any,
    ids: np.ndarray,
    weights: np.ndarray | None = None,
    labels: NewLabels | None = None,
) -> Any:
    """The examples with these ids, in the order of the data.

    Args:
        data: as of `Selection.of`.
        ids: distinct ids `[k]`.
        weights: a sample weight for each, `[k]`, or None.
        labels: other labels for some of these examples, or None.

    Raises:
        ValueError: if an id is missing, or occurs twice.
    """
    if isinstance(data, tf.data.Dataset):
        return _of_dataset(data, ids, weights, labels)
    if is_read_batchwise(data):
        examples = open_examples(data, "data", labels=False)
        _check_ids([b.ids for b in examples.batches(_READ)], ids)
        batch = join(list(select(examples, ids).batches(_READ)))
        rows, data, read = np.arange(len(batch.ids)), batch.data, batch.ids
    else:
        examples = open_examples(data, "data", labels=False)
        read = np.concatenate([b.ids for b in examples.batches(_READ)])
        _check_ids([read], ids)
        rows = np.flatnonzero(np.isin(read, ids))
    parts = _rows(data, rows)
    if labels is not None:
        places = locate(read[rows].tolist(), labels.ids, "data")
        x, y, *own = parts
        parts = x, _relabelled(y, np.array(places), labels.values), *own
    if weights is None:
        return parts
    x, y, *own = parts if isinstance(parts, tuple) else (parts, None)
    in_order = _in_order(read[rows], ids, weights)
    return x, y, _times(in_order, own[0] if own else None)


def _rows(data: Any, rows: np.ndarray) -> Any:
    """Some rows of arrays."""

    def of_leaf(leaf: Any) -> Any:
        if is_pandas(leaf):
            return leaf.iloc[rows]
        return tf.gather(leaf, rows) if tf.is_tensor(leaf) else leaf[rows]

    return tf.nest.map_structure(
        lambda leaf: None if leaf is None else of_leaf(leaf), data
    )


def _relabelled(y: Any, rows: np.ndarray, values: np.ndarray) -> Any:
    """A copy of labels, with others in some rows."""

    def of_leaf(leaf: Any) -> Any:
        if tf.is_tensor(leaf):
            new = tf.constant(values, leaf.dtype)
            return tf.tensor_scatter_nd_update(leaf, rows[:, None], new)
        if is_pandas(leaf):
            changed = leaf.copy()
            try:
                changed.iloc[rows] = values
            except TypeError as error:  # of pandas, as of a new category
                raise ValueError(
                    "New labels should be such as the table of labels holds. "
                    f"Received: {values.reshape(-1)[:5].tolist()}. It said: "
                    f"{error}. Give labels their categories by "
                    "`y.cat.add_categories`, or pass an array."
                ) from error
            return changed
        # A longer word needs a wider type; numbers are of the same.
        changed = leaf.astype(np.result_type(leaf, values))
        changed[rows] = values
        return changed

    return tf.nest.map_structure(of_leaf, y)


def _of_dataset(
    data: tf.data.Dataset,
    ids: np.ndarray,
    weights: np.ndarray | None,
    labels: NewLabels | None,
) -> DatasetWithIds:
    paired = _paired(data)
    spec, element_spec = paired.element_spec
    _check_ids(_read_ids(paired), ids)
    if labels is not None:
        paired = _with_labels(paired, labels)
    weight_of = _by_id(
        ids, np.ones(len(ids)) if weights is None else weights, tf.float32
    )

    def weighed(identifier, element):
        if weights is None:
            return identifier, element
        parts = element if isinstance(element, tuple) else (element,)
        x, y, own = (*parts, None, None)[:3]
        return identifier, (x, y, _times(weight_of(identifier), own))

    if spec.shape.rank == 0:  # to be batched later
        kept = paired.filter(lambda identifier, _: weight_of(identifier) >= 0)
        return DatasetWithIds(kept.map(weighed))

    def of_batch(identifiers, element):
        is_kept = weight_of(identifiers) >= 0
        return tf.nest.map_structure(
            lambda leaf: tf.boolean_mask(leaf, is_kept), (identifiers, element)
        )

    kept = paired.map(of_batch).filter(lambda i, _: tf.size(i) > 0)
    shapes = [leaf.shape[1:] for leaf in tf.nest.flatten(element_spec)]
    if all(shape.is_fully_defined() for shape in shapes):
        first = next(iter(paired))[0]  # full batches again
        kept = kept.rebatch(int(first.shape[0]))
    return DatasetWithIds(kept.map(weighed))


def _by_id(
    ids: np.ndarray, values: np.ndarray, dtype: tf.DType
) -> Callable[[tf.Tensor], tf.Tensor]:
    """Looks up a number by id, which is -1 for any other id."""
    strings = ids.dtype.kind in "USO"
    keys = tf.constant(ids.tolist(), tf.string if strings else tf.int64)
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(keys, tf.constant(values, dtype)),
        default_value=tf.constant(-1, dtype),
    )

    def look_up(identifiers: tf.Tensor) -> tf.Tensor:
        return table.lookup(tf.cast(identifiers, table.key_dtype))

    return look_up


def _with_labels(paired: tf.data.Dataset, labels: NewLabels) -> tf.data.Dataset:
    """The dataset of `(id, element)` with other labels for some ids."""
    place_of = _by_id(labels.ids, np.arange(len(labels.ids)), tf.int64)

    def relabelled(identifier, element):
        places = place_of(identifier)
        x, y, *own = element

        def of_leaf(leaf: tf.Tensor) -> tf.Tensor:
            values = tf.constant(labels.values, leaf.dtype)
            new = tf.gather(values, tf.maximum(places, 0))
            ones = [1] * (new.shape.rank - places.shape.rank)
            shape = tf.concat(
                [tf.shape(places), tf.constant(ones, tf.int32)], 0
            )
            return tf.where(tf.reshape(places >= 0, shape), new, leaf)

        return identifier, (x, tf.nest.map_structure(of_leaf, y), *own)

    return paired.map(relabelled)


def _paired(data: tf.data.Dataset) -> tf.data.Dataset:
    """The dataset of `(id, element)`; refuses one without known ids."""
    if isinstance(data, DatasetWithIds):
        if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY:
            open_examples(data.batch(1), "data", labels=False)  # raises
        return data.paired
    examples = open_examples(data, "data", labels=False)
    folder = read_folder(data)
    if folder is not None:
        return folder.in_order().paired
    assert not examples.carries_ids

    def numbered(start, element):
        size = tf.shape(tf.nest.flatten(element)[0], tf.int64)[0]
        return start + size, (tf.range(start, start + size), element)

    return data.scan(tf.constant(0, tf.int64), numbered)


def _read_ids(paired: tf.data.Dataset) -> list[np.ndarray]:
    ids = paired.map(lambda identifier, _: identifier)
    read = [np.atleast_1d(i) for i in ids.as_numpy_iterator()]
    if read and read[0].dtype.kind in "SO":  # one by one, or in batches
        return [np.array([i.decode("utf-8") for i in part]) for part in read]
    return read


def _check_ids(read: list[np.ndarray], ids: np.ndarray) -> None:
    """Raises ValueError unless each id occurs once among those read."""
    all_ids = np.concatenate(read) if read else np.zeros(0, int)
    locate(all_ids.tolist(), ids, "data")
    check_unique(all_ids[np.isin(all_ids, ids)], "data")


def _in_order(
    read: np.ndarray, ids: np.ndarray, weights: np.ndarray | None
) -> np.ndarray | None:
    """Weights of the examples in the order in which they were read."""
    if weights is None:
        return None
    places = locate(ids.tolist(), read, "data")
    return weights[places].astype(np.float32)


def _times(weights: Any, own: Any) -> Any:
    """Weights `[n]` times weights of examples, or of their positions."""
    if own is None:
        return weights
    if not tf.is_tensor(own):
        own = np.asarray(own)
        shape = (-1,) + (1,) * (own.ndim - 1)
        return np.reshape(weights, shape).astype(own.dtype) * own
    ones = [1] * (own.shape.rank - len(weights.shape))
    shape = tf.concat([tf.shape(weights), tf.constant(ones, tf.int32)], 0)
    return tf.reshape(tf.cast(weights, own.dtype), shape) * own
