"""Batches of examples with ids, and the interface of what yields them.

Synopsis:

    batch = Batch(ids=np.arange(3), x=x, y=y)
    batch.take(np.array([2, 0])).ids         # [2, 0]
    whole = join([batch, batch])
    content_digest([batch])
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf


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
        return nbytes_of(self.data)

    def take(self, rows: np.ndarray) -> Batch:
        """The examples at these positions of the batch, as NumPy arrays."""
        data = tf.nest.map_structure(
            lambda leaf: None if leaf is None else np.asarray(leaf)[rows],
            self.data,
        )
        return Batch(self.ids[rows], *data)


class Examples:
    """A source of batches; see `open_examples`.

    Attributes:
        name: name of the data, for errors.
        size: the number of examples, or None where it is not known.
        estimate: the number of batches times the size of the first, where
            `size` is not known; None where that is not known either.
        carries_ids: whether ids were attached; else they are positions.
        bytes_read_per_example: memory for holding an example, beside what
            the caller holds already.
        note: a sentence on what was done to the data, if anything.
    """

    name: str
    size: int | None
    estimate: int | None = None
    carries_ids: bool
    bytes_read_per_example: int
    note: str = ""

    @property
    def is_padded(self) -> bool:
        """Whether examples of several lengths are padded."""
        return False

    @property
    def expected_size(self) -> int | None:
        """The number of examples to expect, for plans and progress.

        Exact where `size` is known, else `estimate`.
        """
        return self.estimate if self.size is None else self.size

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

    def pad(
        self,
        accepts: Callable[[Batch, Batch], bool],
        like: Batch | None = None,
    ) -> None:
        """Pads examples of several lengths to the longest, if there are any.

        Without it, examples that differ in shape are refused when they are
        read.

        Args:
            accepts: whether to pad, from some of the shortest examples, as
                they are and padded.
            like: examples that are at least as long, by whose length to go.
        """

    def first(self, count: int) -> Batch:
        """The first `count` examples, or as many as there are.

        Data that leaves the shape of an example open may have fewer of them in
        its first batch, which is all that is read.
        """
        batch = next(self.batches(count))
        if len(batch) <= count:
            return batch
        data = tf.nest.map_structure(
            lambda leaf: None if leaf is None else leaf[:count], batch.data
        )
        return Batch(batch.ids[:count], *data)

    def sample(self, count: int) -> Batch:
        """`count` examples to look at: of streamed data, the first."""
        return self.first(count)


def nbytes_of(data: Any) -> int:
    """The size of a structure of arrays in memory, in bytes."""
    return sum(
        int(np.prod(leaf.shape)) * tf.as_dtype(leaf.dtype).size
        for leaf in tf.nest.flatten(data)
        if leaf is not None
    )


def join(batches: list[Batch]) -> Batch:
    """The examples of batches, one after another."""
    if len(batches) == 1:
        return batches[0]
    data = tf.nest.map_structure(_concatenate, *[b.data for b in batches])
    return Batch(np.concatenate([batch.ids for batch in batches]), *data)


def _concatenate(*leaves: Any) -> Any:
    if leaves[0] is None:
        return None
    return np.concatenate([np.asarray(leaf) for leaf in leaves])


def content_digest(batches: Iterable[Batch], start: str = "") -> str:
    """A digest of examples, leaf by leaf, and their ids.

    It does not depend on how the examples are cut into batches.

    Args:
        batches: the examples.
        start: anything else that the digest is to depend on.
    """
    digests: list[_LeafDigest] = []
    for batch in batches:
        leaves = [batch.ids, *tf.nest.flatten(batch.data)]
        digests = digests or [_LeafDigest() for _ in leaves]
        for digest, leaf in zip(digests, leaves, strict=True):
            digest.update(np.asarray(leaf))
    whole = hashlib.blake2b(start.encode(), digest_size=16)
    for digest in digests:
        whole.update(digest.digest.digest())
    return whole.hexdigest()


class _LeafDigest:
    """The digest of one leaf of all batches, one after another."""

    def __init__(self):
        self.digest = hashlib.blake2b(digest_size=16)
        self._form = ""

    def update(self, array: np.ndarray) -> None:
        # Text has addresses for bytes, or as many as the longest needs.
        is_text = array.dtype.kind in "OSU"
        form = f"{'text' if is_text else array.dtype.str}{array.shape[1:]}"
        if form != self._form:
            self.digest.update(form.encode())
            self._form = form
        if is_text:
            for item in array.tolist() if array.ndim else [array.item()]:
                self.digest.update(f"{item!r},".encode())
        else:
            self.digest.update(np.ascontiguousarray(array).tobytes())
