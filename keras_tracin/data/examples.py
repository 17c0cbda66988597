"""Batches with stable example ids, from whatever `model.fit` takes.

An example's id is its position in reading order, or what `with_ids` attached.
Positions mean something only if every reading gives the same order, so a
dataset that shuffles is refused unless it carries ids.

Synopsis:

    train = with_ids((x, y)).shuffle(1000).batch(32)
    model.fit(train)                       # sees (x, y), as ever
    for batch in open_examples(train).batches(128):
        batch.ids, batch.x, batch.y, batch.sample_weight
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.example_ids import DatasetWithIds, loses_ids

_REMEDY_ORDER = (
    "Attach ids that survive shuffling, `kt.with_ids(data).shuffle(...)"
    ".batch(...)`, or take out what changes from one reading to the next "
    "(`shuffle`, random augmentation) before attribution."
)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some examples: `ids [n]`, and structures whose leaves are `[n, ...]`."""

    ids: np.ndarray
    x: Any
    y: Any = None
    sample_weight: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def data(self) -> tuple[Any, ...]:
        """`(x, y)` or `(x, y, sample_weight)`, as a model's `fit` takes it.

        `(x,)` where there are no labels.
        """
        if self.y is None and self.sample_weight is None:
            return (self.x,)
        if self.sample_weight is None:
            return self.x, self.y
        return self.x, self.y, self.sample_weight

    @property
    def nbytes(self) -> int:
        """The size of the batch's arrays in memory."""
        return sum(
            int(np.prod(leaf.shape)) * tf.as_dtype(leaf.dtype).size
            for leaf in tf.nest.flatten(self.data)
        )


def with_ids(
    data: Any, ids: Any | Callable[..., tf.Tensor] | None = None
) -> DatasetWithIds:
    """Attaches ids to examples, before they are shuffled and batched.

    Example:
    ```python
    train = kt.with_ids((x, y)).shuffle(10_000).batch(32)
    train = kt.with_ids(tfds_dataset, "tfds_id").map(to_xy).batch(32)
    model.fit(train, callbacks=[kt.TracInCheckpoint("runs/digits")])
    kt.TracIn(model, train, "runs/digits").self_influence().ids
    ```

    Args:
        data: an unbatched `tf.data.Dataset`, or arrays `(x, y)`,
            `(x, y, sample_weight)` or, where labels are made later, `(x,)`.
        ids: None for positions, an array or dataset with one id per example
            (integers or strings), the key of a dict element that holds the
            id (it is taken out of the element), or a function of the element
            that returns it.

    Returns:
        A dataset of examples to shuffle, map and batch as usual. Readers such
        as `model.fit` do not see the ids.

    Raises:
        ValueError: if there are more or fewer ids than examples, if they are
            not whole numbers or strings, or if elements have no such key.
    """
    dataset = data
    if not isinstance(data, tf.data.Dataset):
        alone = isinstance(data, tuple) and len(data) == 1
        parts = tuple(map(_as_text, _unpack(data, labels=not alone)))
        _check_lengths(parts)
        given = tuple(part for part in parts if part is not None)
        dataset = tf.data.Dataset.from_tensor_slices(given)
    if isinstance(dataset, DatasetWithIds):
        dataset = dataset.plain  # these ids take the place of those it has
    if ids is None:
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
        known = tf.data.Dataset.from_tensor_slices(_checked_ids(ids))
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

    def taken_out(element):
        rest = {k: v for k, v in element.items() if k != key}
        return element[key], rest

    return dataset.map(taken_out)


def _checked_ids(ids: Any) -> np.ndarray:
    """Ids as an array `[n]` of whole numbers or strings."""
    array = np.asarray(ids)
    if array.ndim != 1 or array.dtype.kind not in "iuSUO":
        raise ValueError(
            "`ids` should hold one whole number or string per example. "
            f"Received an array of shape {array.shape} and dtype "
            f"{array.dtype}."
        )
    if array.dtype.kind in "SO":
        for at, value in enumerate(array.tolist()):
            _check_text(value, f"the {at + 1}th example")
    return array


def open_examples(
    data: Any, name: str = "train", labels: bool = True
) -> Examples:
    """The examples in what `model.fit` would take.

    Args:
        data: a batched `tf.data.Dataset` of `(x, y[, sample_weight])`, or a
            tuple of arrays `(x, y[, sample_weight])`; `x` and `y` may be
            dicts, tuples or lists of arrays.
        name: what errors call the data.
        labels: whether there have to be labels; without, `x` alone is taken
            as well.

    Raises:
        ValueError: if the data is empty, infinite, unbatched, its parts
            differ in length, or its order changes and it carries no ids.
        TypeError: for anything else.
    """
    if isinstance(data, tf.data.Dataset):
        return _DatasetExamples(data, name, labels)
    return _ArrayExamples(data, name, labels)


class Examples:
    """A source of batches; see `open_examples`.

    Attributes:
        name: what errors call it.
        size: the number of examples, or None where it is not known.
        carries_ids: whether ids were attached; else they are positions.
        bytes_read_per_example: what holding an example takes, beside what
            the caller holds already.
        note: what was done to the data, if anything.
    """

    name: str
    size: int | None
    carries_ids: bool
    bytes_read_per_example: int
    note: str = ""

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields the examples in reading order.

        Args:
            batch_size: examples in a batch; only the last has fewer. Data
                that leaves the shape of an example open keeps its own batches.

        Raises:
            ValueError: if the data turns out to be empty, its parts to differ
                in length, or its examples in shape.
        """
        raise NotImplementedError

    def first(self, count: int) -> Batch:
        """The first `count` examples, or as many as there are."""
        return next(self.batches(count))

    def sample(self, count: int) -> Batch:
        """`count` examples to look at: the first, of data that is read."""
        return self.first(count)


def chosen(examples: Examples, ids: np.ndarray) -> Examples:
    """Those examples that have one of these ids, in reading order."""
    return _ChosenExamples(examples, ids)


class _ChosenExamples(Examples):
    def __init__(self, examples: Examples, ids: np.ndarray):
        self._examples, self._ids = examples, ids
        self.name, self.size = examples.name, len(ids)
        self.bytes_read_per_example = examples.bytes_read_per_example
        self.note = examples.note

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Full batches, since few of a batch that is read may be wanted."""
        kept: list[Batch] = []
        taken: list[Any] = []
        for batch in self._examples.batches(batch_size):
            rows = np.flatnonzero(np.isin(batch.ids, self._ids))
            if not len(rows):
                continue
            taken += batch.ids[rows].tolist()
            if len(set(taken)) < len(taken):
                check_unique(np.array(taken), self.name)
            data = tf.nest.map_structure(
                lambda leaf, rows=rows: np.asarray(leaf)[rows], batch.data
            )
            more = Batch(batch.ids[rows], *data)
            if kept and sum(map(len, kept)) + len(rows) > batch_size:
                yield joined(kept)
                kept = []
            kept.append(more)
        if kept:
            yield joined(kept)


def repeated(ids: np.ndarray) -> list[Any]:
    """The ids that occur more than once."""
    values, counts = np.unique(np.asarray(ids), return_counts=True)
    return values[counts > 1].tolist()


def check_unique(ids: np.ndarray, name: str) -> None:
    """Raises ValueError where ids that are to name examples do not.

    Args:
        ids: `[n]`.
        name: what errors call the data.
    """
    twice = repeated(ids)
    if twice:
        raise ValueError(
            f"Each example of `{name}` should have an id of its own where ids "
            f"select examples. Received {twice[:5]} more than once. Give "
            "others by `kt.with_ids(data, ids)`, or leave out `.repeat()`."
        )


def joined(batches: list[Batch]) -> Batch:
    """The examples of batches, one after another."""
    data = tf.nest.map_structure(
        lambda *leaves: np.concatenate([np.asarray(leaf) for leaf in leaves]),
        *[batch.data for batch in batches],
    )
    return Batch(np.concatenate([batch.ids for batch in batches]), *data)


def content_digest(batches: Iterable[Batch], start: str = "") -> str:
    """A digest of examples, leaf by leaf, and their ids.

    It does not depend on how the examples are cut into batches.

    Args:
        batches: the examples.
        start: what the digest depends on beside them.
    """
    digests: list[_LeafDigest] = []
    for batch in batches:
        leaves = [batch.ids, *tf.nest.flatten(batch.data)]
        digests = digests or [_LeafDigest() for _ in leaves]
        for digest, leaf in zip(digests, leaves, strict=True):
            digest.update(np.asarray(leaf))
    whole = hashlib.blake2b(start.encode(), digest_size=16)
    for digest in digests:
        whole.update(digest.found.digest())
    return whole.hexdigest()


class _LeafDigest:
    """The digest of one leaf of all batches, one after another."""

    def __init__(self):
        self.found = hashlib.blake2b(digest_size=16)
        self._form = ""

    def update(self, array: np.ndarray) -> None:
        # Text has addresses for bytes, or as many as the longest needs.
        is_text = array.dtype.kind in "OSU"
        form = f"{'text' if is_text else array.dtype.str}{array.shape[1:]}"
        if form != self._form:
            self.found.update(form.encode())
            self._form = form
        if is_text:
            for item in array.tolist() if array.ndim else [array.item()]:
                self.found.update(f"{item!r},".encode())
        else:
            self.found.update(np.ascontiguousarray(array).tobytes())


class _ArrayExamples(Examples):
    carries_ids = False
    bytes_read_per_example = 0  # slices of the caller's arrays

    def __init__(self, data: Any, name: str, labels: bool):
        self.name = name
        arrays = tf.nest.map_structure(_as_array, _unpack(data, name, labels))
        self._arrays = arrays
        self.size = self._count = _check_lengths(arrays, name)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, self._count, batch_size):
            stop = min(start + batch_size, self._count)
            x, y, sample_weight = tf.nest.map_structure(
                lambda leaf, start=start, stop=stop: (
                    None if leaf is None else leaf[start:stop]
                ),
                self._arrays,
            )
            yield Batch(np.arange(start, stop), x, y, sample_weight)

    def sample(self, count: int) -> Batch:
        """`count` examples from anywhere, always the same."""
        rng = np.random.default_rng(0)
        size = min(count, self._count)
        rows = np.sort(rng.choice(self._count, size, replace=False))
        x, y, sample_weight = tf.nest.map_structure(
            lambda leaf: None if leaf is None else np.asarray(leaf)[rows],
            self._arrays,
        )
        return Batch(rows, x, y, sample_weight)


class _DatasetExamples(Examples):
    def __init__(self, data: tf.data.Dataset, name: str, labels: bool):
        self.name, self._labels = name, labels
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
        self._dataset = data.paired if self.carries_ids else data.map(_paired)
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
                "bound it with `.take(...)`."
            )
        self.size = _count_examples(spec, cardinality)
        if not self.carries_ids:
            self._check_order()
        first = self.first(1)
        self.bytes_read_per_example = first.nbytes // len(first)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        dataset = self._dataset
        if self._fixed_shapes:
            dataset = dataset.rebatch(batch_size)
        position, first = 0, None
        for ids, element in self._read(dataset.prefetch(2)):
            x, y, sample_weight = _unpack_element(
                element, self.name, self._labels
            )
            leaves = tf.nest.flatten(element)
            count = len(leaves[0])
            if any(len(leaf) != count for leaf in leaves):
                _check_lengths(leaves, self.name)
            if self.carries_ids:
                ids = _readable(ids.numpy())
            else:
                ids = np.arange(position, position + count)
            shapes = [tuple(leaf.shape[1:]) for leaf in leaves]
            first = first or shapes
            _check_alike(first, shapes, ids, self.name)
            position += count
            yield Batch(ids, x, y, sample_weight)
        if first is None:
            raise ValueError(
                f"`{self.name}` is empty: received a dataset without elements, "
                "expected at least one batch."
            )

    def _read(self, dataset: tf.data.Dataset) -> Iterator[Any]:
        """The elements; where joining them fails, the reason if it is known."""
        try:
            yield from dataset
        except tf.errors.InvalidArgumentError:
            for ids, element in self._dataset:
                leaves = tf.nest.flatten(element)
                _check_lengths(
                    [ids, *leaves] if self.carries_ids else leaves, self.name
                )
            raise

    def _check_order(self) -> None:
        """Reads the beginning twice; the same examples should come."""
        heads = (self._dataset.take(2), self._dataset.take(2))
        first, second = (tf.nest.flatten(list(self._read(h))) for h in heads)
        same = len(first) == len(second) and all(
            map(_same_values, first, second)
        )
        if not same:
            raise ValueError(
                f"`{self.name}` gives its examples in another order, or "
                "changed, each time it is read, so they cannot be told apart "
                f"by position. {_REMEDY_ORDER}"
            )


def _paired(*element):
    """`(id, element)` with an empty id, for datasets that carry none."""
    return tf.zeros([tf.shape(tf.nest.flatten(element)[0])[0], 0]), (
        element if len(element) > 1 else element[0]
    )


def _same_values(a: tf.Tensor, b: tf.Tensor) -> bool:
    """Whether two tensors are alike to the bit; NaN is equal to itself."""
    one, other = np.asarray(a), np.asarray(b)
    if one.dtype == object:  # strings
        return one.tolist() == other.tolist()
    return one.shape == other.shape and one.tobytes() == other.tobytes()


def _readable(ids: np.ndarray) -> np.ndarray:
    """Ids as numbers or text: TensorFlow's strings come as bytes."""
    if ids.dtype != object:
        return ids
    try:
        return np.array([value.decode("utf-8") for value in ids])
    except UnicodeDecodeError:
        for at, value in enumerate(ids):
            _check_text(value, f"the {at + 1}th example of a batch")
        raise


def _check_text(value: Any, where: str) -> None:
    """Refuses bytes that are no text: results and files hold ids as text."""
    try:
        if isinstance(value, bytes):
            value.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"Ids should be whole numbers or text in UTF-8. Received {value!r} "
            f"for {where}. Make text of them first: `value.hex()`, "
            "`value.decode('latin-1')`, or `tf.io.encode_base64` in a map."
        ) from None


def _unpack(
    data: Any, name: str = "data", labels: bool = True
) -> tuple[Any, Any, Any]:
    if not labels:
        data = data if isinstance(data, tuple) else (data,)
        data = (*data, None) if len(data) == 1 else data
    if not isinstance(data, tuple) or not 1 < len(data) < 4:
        received = type(data).__name__
        if isinstance(data, tuple):
            received += f" of length {len(data)}"
        raise TypeError(
            f"`{name}` should be a batched `tf.data.Dataset` or a tuple of "
            f"arrays (x, y) or (x, y, sample_weight). Received: {received}."
        )
    if not any(leaf is not None for leaf in tf.nest.flatten(data[0])):
        raise TypeError(
            f"`{name}` holds no inputs: received x={data[0]!r}, expected an "
            "array, or a dict, tuple or list of arrays."
        )
    if labels and all(leaf is None for leaf in tf.nest.flatten(data[1])):
        raise TypeError(
            f"`{name}` holds no labels: received y={data[1]!r}, expected "
            "(x, y) or (x, y, sample_weight)."
        )
    return (*data, None)[:3] if len(data) == 2 else data


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


def _as_text(part: Any) -> Any:
    """A list of texts as the array that it stands for, anything else as is."""
    is_text = isinstance(part, list) and all(isinstance(t, str) for t in part)
    return np.asarray(part) if is_text and part else part


def _as_array(leaf: Any) -> Any:
    """Arrays as they are, with Python floats as Keras would make them."""
    if leaf is None or tf.is_tensor(leaf):
        return leaf
    array = np.asarray(leaf)
    if array.dtype == np.float64:
        return array.astype(keras.config.floatx(), copy=False)
    return array


def _check_lengths(arrays: Any, name: str = "data") -> int:
    """The number of examples in nested arrays, one row for each."""
    leaves = [leaf for leaf in tf.nest.flatten(arrays) if leaf is not None]
    shapes = [tuple(leaf.shape) for leaf in leaves]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"All arrays of `{name}` should have one row per example. "
            f"Received arrays of shapes {shapes}."
        )
    length = shapes[0][0]
    if length == 0:
        raise ValueError(
            f"`{name}` is empty: received arrays of shapes {shapes}, expected "
            "at least one example."
        )
    return int(length)


def _check_alike(
    expected: list[tuple],
    received: list[tuple],
    ids: np.ndarray,
    name: str,
) -> None:
    """Refuses a batch that the steps compiled for the first cannot take."""
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
        raise ValueError(
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
