"""Training examples that are read many times, and drawn at random.

Solving for a curvature reads the data hundreds of times. Data that fits is
kept in memory; other data is read anew each time, and random minibatches come
from a uniform sample of it.

Synopsis:

    data = Minibatches(examples, memory=2**30)
    for batch in data.batches(256): ...      # every example, in order
    batch = data.draw(rng, 64)               # 64 at random
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import warnings
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Examples, join
from keras_tracin.data.held import HeldExamples

_READ = 1024  # examples read at a time


class Watcher(Protocol):
    """Something that counts batches, such as a progress bar."""

    def advance(self, steps: int = 1) -> None:
        """Counts batches that were read."""

    def finish(self) -> None:
        """Says that no more will be read."""


class Minibatches:
    """Batches and random draws of examples, in memory as far as they fit.

    Args:
        examples: the data.
        memory: bytes that may be kept.
    """

    def __init__(self, examples: Examples, memory: int):
        self._examples = examples
        self._memory = memory
        self._watchers: list[Watcher] = []

    @contextlib.contextmanager
    def watched(self, watcher: Watcher) -> Iterator[None]:
        """Tells a watcher of every batch that is used in a block."""
        self._watchers.append(watcher)
        try:
            yield
        finally:
            self._watchers.remove(watcher)
            watcher.finish()

    def batches(self, batch_size: int) -> Iterator[Any]:
        """Yields `(x, y[, sample_weight])` of all examples, as tensors."""
        return self.spread(1, batch_size)

    def spread(self, every: int, batch_size: int) -> Iterator[Any]:
        """Yields batches of every second example, every third, and so on.

        Where they are not all in memory, of every second batch, and so on.
        """
        for batch in self._spread(every, batch_size):
            yield batch
            self.advance()

    def _spread(self, every: int, batch_size: int) -> Iterator[Any]:
        if self._whole is None:
            batches = self._examples.batches(batch_size)
            for batch in itertools.islice(batches, 0, None, every):
                yield _tensors(batch.data)
            return
        stride = every * batch_size
        for start in range(0, _length(self._whole), stride):
            rows = slice(start, start + stride, every)
            yield tf.nest.map_structure(lambda x, at=rows: x[at], self._whole)

    def advance(self) -> None:
        """Tells the watcher that a batch was used."""
        if self._watchers:
            self._watchers[-1].advance()

    def draw(self, rng: np.random.Generator, batch_size: int) -> Any:
        """`batch_size` different examples (or all, if there are fewer).

        What uses them calls `advance`.
        """
        source = self._sample if self._whole is None else self._whole
        count = _length(source)
        if batch_size >= count:
            return source
        rows = rng.choice(count, batch_size, replace=False, shuffle=False)
        return tf.nest.map_structure(lambda leaf: tf.gather(leaf, rows), source)

    @functools.cached_property
    def _whole(self) -> Any | None:
        """All examples, or None where they do not fit."""
        held = HeldExamples.read_within(self._examples, self._memory)
        return None if held is None else _tensors(held.data)

    @functools.cached_property
    def _sample(self) -> Any:
        """A uniform sample of what fits in memory."""
        count = size = 0
        for batch in self._examples.batches(_READ):
            count, size = count + len(batch), size + batch.nbytes
        keep = int(max(1, count * self._memory // size))
        warnings.warn(
            f"`{self._examples.name}` takes {size / 2**20:,.0f} MB, more than "
            f"may be kept; random minibatches come from {keep:,} of its "
            f"{count:,} examples, drawn once. Raise `memory_limit` to use "
            "more.",
            stacklevel=4,
        )
        rng = np.random.default_rng(0)
        kept = np.sort(rng.choice(count, keep, replace=False))
        parts, start = [], 0
        for batch in self._examples.batches(_READ):
            inside = (kept >= start) & (kept < start + len(batch))
            rows = kept[inside] - start
            if len(rows):
                parts.append(batch.take(rows))
            start += len(batch)
        return _tensors(join(parts).data)


def _tensors(data: Any) -> Any:
    return tf.nest.map_structure(tf.convert_to_tensor, data)


def _length(data: Any) -> int:
    return len(tf.nest.flatten(data)[0])
