"""The pass over checkpoints and training batches that every score needs.

Training examples are read once, in chunks that fit memory. Each checkpoint's
weights are put into the model once per chunk (as a rule there is one chunk),
and all checkpoints of a chunk are summed before anybody ranks anything.

Synopsis:

    plan = make_plan(train, num_queries=100, num_checkpoints=5, ...)
    sweep(model, checkpoints, train, plan, prepare=..., step=...,
          sink=Sink(merger.add), progress=Progress(plan, 1, "TracIn"))
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, TypeVar

import keras
import numpy as np

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.engine.footprint import Footprint
from keras_tracin.engine.progress import Progress
from keras_tracin.runs import Checkpoint, run_weights

# Batches of less leave the cores idle between many small steps; of more, they
# brought nothing, on a CPU, or took longer, and take more memory.
_LARGEST_TENSOR = 64 * 2**20
_LARGEST_STEP = 256 * 2**20  # all tensors that exist at the same time
_BATCH_SIZES = (16, 1024)

Some = TypeVar("Some", bound=Sized)  # a batch, of whatever kind


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Training examples that are read, and scored, together.

    Attributes:
        number: how many chunks were read before.
        start: how many examples were read before.
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


@dataclasses.dataclass(frozen=True)
class Sink:
    """What scores flow into, chunk by chunk.

    Attributes:
        add: takes ids `[c]` and their scores `[..., c]`.
        wants: asked before any work on a chunk; one that it does not want is
            read and passed over.
    """

    add: Callable[[np.ndarray, np.ndarray], None]
    wants: Callable[[Chunk], bool] = lambda chunk: True


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a sweep is going to do, and what it will need.

    Attributes:
        num_train: training examples, None where the data does not tell.
        num_queries: queries; 0 for self-influence.
        num_checkpoints: checkpoints with a rate above zero.
        batch_size: training examples in a step.
        chunk: training examples over which all checkpoints are summed
            before the next are read.
        memory: estimated peak in bytes, that of `top_k` or `self_influence`:
            the input data aside, and the matrix that `influence` returns.
        weights: how much of it is for weights: the model's own while it is
            lent others, the state of an optimizer. No limit makes it less.
        num_blocks: blocks of queries; the training examples' gradients are
            computed anew for each.
        sparing: whether queries are held in the form that takes the least
            memory, since gradients would else be computed anew too often.
        seconds: estimated time, None where it was not asked for or the data
            does not tell how many they are.
    """

    num_train: int | None
    num_queries: int
    num_checkpoints: int
    batch_size: int
    chunk: int
    memory: int
    weights: int = 0
    num_blocks: int = 1
    sparing: bool = False
    seconds: float | None = dataclasses.field(default=None, compare=False)

    @property
    def steps(self) -> int | None:
        """Batches of one block over all checkpoints; None if not known."""
        if self.num_train is None:
            return None
        batches = math.ceil(self.num_train / self.batch_size)
        return batches * self.num_checkpoints

    def __str__(self) -> str:
        train = "?" if self.num_train is None else f"{self.num_train:,}"
        work = f"{train} training examples"
        if self.num_queries:
            work += f" × {self.num_queries:,} queries"
        if self.num_blocks > 1:
            work += f" (in {self.num_blocks:,} blocks)"
        plural = "" if self.num_checkpoints == 1 else "s"
        parts = [
            f"{work} × {self.num_checkpoints} checkpoint{plural}",
            f"batches of {self.batch_size}",
            f"about {max(1, round(self.memory / 2**20)):,} MB of memory",
        ]
        if self.sparing:
            parts.insert(1, "factors in their smallest form")
        if 2 * self.weights > self.memory:
            parts[-1] += f" ({self.weights / 2**20:,.0f} MB for weights)"
        if self.seconds is not None:
            parts.append(in_words(self.seconds))
        return ", ".join(parts)


def in_words(seconds: float) -> str:
    """A length of time, roughly.

    >>> in_words(0.2), in_words(50), in_words(700), in_words(9000)
    ('under a second', 'about 50 s', 'about 12 min', 'about 2.5 h')
    """
    if seconds < 1:
        return "under a second"
    if seconds < 100:
        return f"about {seconds:.0f} s"
    if seconds < 6000:
        return f"about {seconds / 60:.0f} min"
    return f"about {seconds / 3600:.1f} h"


def default_memory_limit() -> int:
    """Half of the memory that is free now, in bytes."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 2 * 2**30
    return free // 2


def make_plan(
    train: Examples,
    *,
    num_queries: int,
    num_checkpoints: int,
    footprint: Footprint,
    bytes_per_query: int,
    memory_limit: int,
    query_batch: int = 0,
    weights: int = 0,
    loading: int = 0,
    prepared: int = 0,
) -> Plan:
    """Chooses batches and chunks that fit the memory limit.

    Args:
        train: the training examples.
        num_queries: queries whose gradients are held; 0 for self-influence.
        num_checkpoints: checkpoints to sum over.
        footprint: what a step makes for each training example.
        bytes_per_query: the gradients of one query, as they are held.
        memory_limit: bytes; a quarter each goes to a step, to a chunk and to
            the queries, twice over while these are joined.
        query_batch: queries whose gradients are made in one step, which is
            taken to need what one of training examples does.
        weights: bytes of weights that are held throughout.
        loading: bytes that are needed while a checkpoint is loaded, when no
            step is running.
        prepared: bytes that steps are given beside the queries, of the size
            of weights.
    """
    room = memory_limit // 4
    batch = min(
        _LARGEST_TENSOR // max(1, footprint.largest),
        min(room, _LARGEST_STEP) // max(1, footprint.peak),
    )
    smallest, largest = _BATCH_SIZES
    batch = min(max(2 ** int(math.log2(max(1, batch))), smallest), largest)
    row = 4 * max(1, num_queries) + train.bytes_read_per_example
    chunk = max(batch, room // row)
    known = chunk if train.size is None else min(chunk, train.size)
    working = (
        prepared
        + max(min(batch, known), query_batch) * footprint.peak
        + 2 * num_queries * bytes_per_query  # once more while joined
        + known * row
    )
    return Plan(
        num_train=train.size,
        num_queries=num_queries,
        num_checkpoints=num_checkpoints,
        batch_size=batch,
        chunk=chunk,
        memory=footprint.fixed + weights + max(working, loading),
        weights=weights + prepared + max(0, loading - working),
    )


def sweep(
    model: keras.Model,
    checkpoints: Sequence[Checkpoint | None],
    train: Examples,
    plan: Plan,
    *,
    prepare: Callable[[Checkpoint | None], Any],
    step: Callable[[Checkpoint | None, Batch, Any], np.ndarray],
    sink: Sink,
    progress: Progress,
) -> None:
    """Sums a step's results over checkpoints, chunk by chunk.

    The model gets its own weights back however this ends.

    Args:
        model: the model to put the checkpoints' weights into.
        checkpoints: those to sum over; None stands for the weights that the
            model has.
        train: the training examples.
        plan: batch and chunk sizes.
        prepare: called with a checkpoint once its weights are in the model;
            returns whatever `step` wants to know of the queries there.
        step: `(checkpoint, batch, prepared) -> [..., len(batch)]`.
        sink: takes each chunk's ids `[c]` and sums `[..., c]`.
        progress: told of every step.
    """
    with run_weights(model) as load:
        for chunk in _chunks(train, plan):
            if not sink.wants(chunk):
                progress.advance(len(chunk.batches) * len(checkpoints))
                continue
            sums = np.zeros(0)
            for visit, checkpoint in enumerate(checkpoints):
                if checkpoint is not None:
                    load(checkpoint)
                prepared = prepare(checkpoint)
                stop = 0
                for batch in chunk.batches:
                    found = step(checkpoint, batch, prepared)
                    start, stop = stop, stop + len(batch)
                    if visit == start == 0:
                        shape = (*found.shape[:-1], len(chunk))
                        sums = np.zeros(shape, found.dtype)
                    sums[..., start:stop] += found
                    progress.advance()
                del prepared  # before the next weights are read
            sink.add(chunk.ids, sums)
            del sums  # before the next chunk's are made


def _chunks(train: Examples, plan: Plan) -> Iterator[Chunk]:
    start = 0
    grouped = in_chunks(train.batches(plan.batch_size), plan.chunk)
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
