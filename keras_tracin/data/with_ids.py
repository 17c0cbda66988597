"""Attaching ids to examples.

Synopsis:

    train = with_ids((x, y)).shuffle(1000).batch(32)
    model.fit(train)                       # sees (x, y), as ever
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.folders import folder_with_ids
from keras_tracin.data.frames import read_index
from keras_tracin.data.ids import check_text
from keras_tracin.data.structure import check_arrays, check_lengths, unpack


def with_ids(
    data: Any, ids: Any | Callable[..., tf.Tensor] | None = None
) -> DatasetWithIds:
    """Attaches ids to examples, before they are shuffled and batched.

    Example:
    ```python
    train = kt.with_ids((x, y)).shuffle(10_000).batch(32)
    train = kt.with_ids(tfds_dataset, "tfds_id").map(to_xy).batch(32)
    folder = keras.utils.image_dataset_from_directory("photos")
    train = kt.with_ids(folder).map(scale)  # names of files; batched already
    model.fit(train, callbacks=[kt.TracInCheckpoint("runs/digits")])
    kt.TracIn(model, train, "runs/digits").self_influence().ids
    ```

    Args:
        data: an unbatched `tf.data.Dataset`, or arrays `(x, y)`,
            `(x, y, sample_weight)` or, where labels are made later, `(x,)`;
            or what `keras.utils.image_dataset_from_directory` and its like
            return, which shuffles and is batched as before.
        ids: None for positions, the index of a pandas table or the names of
            the files of a folder; an
            array or dataset with one id per example (integers or strings),
            the key of a dict element that holds the id (it is taken out of
            the element), or a function of the element that returns it.

    Returns:
        A dataset of examples to shuffle, map and batch as usual. Readers such
        as `model.fit` do not see the ids.

    Raises:
        ValueError: if there are more or fewer ids than examples, if they are
            not whole numbers or strings, if elements have no such key, or if
            the dataset of a folder was transformed before.
    """
    dataset = data
    if not isinstance(data, tf.data.Dataset):
        alone = isinstance(data, tuple) and len(data) == 1
        parts = tuple(map(_as_text, unpack(data, labels=not alone)))
        check_arrays(parts)
        check_lengths(parts)
        ids = read_index(data, "data") if ids is None else ids
        given = tuple(part for part in parts if part is not None)
        dataset = tf.data.Dataset.from_tensor_slices(given)
    if isinstance(dataset, DatasetWithIds):
        dataset = dataset.plain  # these ids take the place of those it has
    if ids is None:
        folder = folder_with_ids(dataset)
        if folder is not None:
            return folder
        return DatasetWithIds(dataset.enumerate())
    if isinstance(ids, str):
        return DatasetWithIds(_keyed(dataset, ids))
    if callable(ids):
        return DatasetWithIds(
            dataset.map(
                lambda *element: (
                    ids(*element),
                    element if len(element) > 1 else element[0],
                )
            )
        )
    known: tf.data.Dataset = ids
    if not isinstance(ids, tf.data.Dataset):
        known = tf.data.Dataset.from_tensor_slices(_validate_ids(ids))
    counts = known.cardinality().numpy(), dataset.cardinality().numpy()
    if min(counts) >= 0 and counts[0] != counts[1]:
        raise ValueError(
            "`ids` should hold one id per example. Received "
            f"{counts[0]} ids for {counts[1]} examples."
        )
    return DatasetWithIds(tf.data.Dataset.zip(known, dataset))


def _keyed(dataset: tf.data.Dataset, key: str) -> tf.data.Dataset:
    """The dataset of `(element[key], what else is in element)`."""
    spec = dataset.element_spec
    if not isinstance(spec, dict) or key not in spec:
        received = (
            f"keys {list(spec)}" if isinstance(spec, dict) else f"type {spec}"
        )
        raise ValueError(
            f"`ids={key!r}` should name an entry of elements that are dicts. "
            f"Received elements of {received}. Name one of the keys, or pass "
            "an array of ids or a function of the element."
        )

    def take_out(element):
        rest = {k: v for k, v in element.items() if k != key}
        return element[key], rest

    return dataset.map(take_out)


def _validate_ids(ids: Any) -> np.ndarray:
    """Returns ids as an array `[n]` of whole numbers or strings."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iuSUO":
        raise ValueError(
            "`ids` should hold one whole number or string per example. "
            f"Received an array of shape {array.shape} and dtype "
            f"{array.dtype}."
        )
    if array.dtype.kind in "SO":
        for at, value in enumerate(array.tolist()):
            check_text(value, f"the {at + 1}th example")
    return array


def _as_text(part: Any) -> Any:
    """Returns a list of texts as an array, anything else as it is."""
    is_text = isinstance(part, list) and all(isinstance(t, str) for t in part)
    return np.asarray(part) if is_text and part else part
