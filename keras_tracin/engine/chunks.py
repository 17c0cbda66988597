"""Training examples in chunks, and sinks that take their scores.

Synopsis:

    for batches in in_chunks(examples.batches(128), 1024):
        ...
    sink = Sink(merger.add)
    sink.add(ids, scores)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Set, Sized
from typing import Any, TypeVar

import numpy as np

from keras_tracin.data.batches import Batch, Examples

Some = TypeVar("Some", bound=Sized)  # a batch, of whatever kind


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Training examples that are read, and scored, together.

    Attributes:
        number: number of chunks that were read before.
        start: number of examples that were read before.
        batches: the examples.
    """

    number: int
    start: int
    batches: tuple[Batch, ...]

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    @property
    def ids(self) -> np.ndarray:
        """The examples' ids, in reading order."""
        return np.concatenate([batch.ids for batch in self.batches])


def _want_all(chunk: Chunk) -> bool:
    return True


@dataclasses.dataclass(frozen=True)
class Sink:
    """A receiver of scores, chunk by chunk.

    Attributes:
        add: takes ids `[c]` and their scores `[..., c]`.
        wants: asked before any work on a chunk; a chunk that it does not want
            is read and passed over.
    """

    add: Callable[[np.ndarray, Any], None]
    wants: Callable[[Chunk], bool] = _want_all


def restrict(sink: Sink, ids: np.ndarray) -> Sink:
    """A sink that passes on the scores of some training examples only.

    Args:
        sink: takes their scores.
        ids: the ids of these training examples.
    """
    number = start = 0
    rows = np.zeros(0, int)

    def wants(chunk: Chunk) -> bool:
        nonlocal number, start, rows
        rows = np.flatnonzero(np.isin(chunk.ids, ids))
        if not len(rows):
            return False
        batches = tuple(
            batch.take(np.flatnonzero(np.isin(batch.ids, ids)))
            for batch in chunk.batches
        )
        part = Chunk(number, start, batches)
        number, start = number + 1, start + len(rows)
        return sink.wants(part)

    def add(ids: np.ndarray, scores: np.ndarray) -> None:
        sink.add(ids[rows], scores[..., rows])

    return Sink(add, wants)


@contextlib.contextmanager
def require(sink: Sink, ids: np.ndarray | None) -> Iterator[Sink]:
    """Yields a sink that has to be offered all of some training examples.

    Args:
        sink: takes their scores.
        ids: the ids of these training examples; None to require none.

    Raises:
        ValueError: when the block ends and some of them were not offered.
    """
    if ids is None:
        yield sink
        return
    offered: set[Any] = set()

    def wants(chunk: Chunk) -> bool:
        offered.update(chunk.ids.tolist())
        return sink.wants(chunk)

    yield Sink(sink.add, wants)
    check_there(ids, offered)


def check_there(ids: np.ndarray, known: Set[Any]) -> None:
    """Raises ValueError unless all ids given to `among` are known.

    Args:
        ids: the ids that `among` was given.
        known: ids of the training examples.
    """
    missing = [name for name in ids.tolist() if name not in known]
    if missing:
        raise ValueError(
            "`among` should hold ids of training examples. Received "
            f"{missing[:5]}, {len(missing)} in all, which are not there. "
            "Take ids from `.train_ids` of scores."
        )


def read_chunks(
    examples: Examples, batch_size: int, size: int
) -> Iterator[Chunk]:
    """The examples in chunks of whole batches.

    Args:
        examples: the examples to read.
        batch_size: number of examples in a batch.
        size: number of examples from which on a chunk is complete.
    """
    start = 0
    grouped = in_chunks(examples.batches(batch_size), size)
    for number, batches in enumerate(grouped):
        chunk = Chunk(number, start, tuple(batches))
        yield chunk
        start += len(chunk)


def in_chunks(batches: Iterable[Some], size: int) -> Iterator[list[Some]]:
    """Groups batches until they hold `size` examples or more."""
    chunk: list[Some] = []
    for batch in batches:
        chunk.append(batch)
        if sum(map(len, chunk)) >= size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
