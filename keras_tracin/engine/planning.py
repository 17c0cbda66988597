"""The batches and chunks of a pass, and the memory it will need.

Synopsis:

    plan = make_plan(train, num_queries=100, num_checkpoints=5,
                     footprint=footprint(step), bytes_per_query=4000,
                     execution=Execution())
    print(plan)
"""

from __future__ import annotations

import dataclasses
import math

from keras_tracin.data.batches import Examples
from keras_tracin.engine.execution import Execution
from keras_tracin.engine.footprint import Footprint


@dataclasses.dataclass(frozen=True)
class Plan:
    """The work of a call, and what it will need.

    Attributes:
        num_train: number of training examples, None where the data does not
            tell.
        exact: whether that is their number, not an estimate by the number of
            batches.
        num_queries: number of queries; 0 for self-influence.
        num_checkpoints: number of checkpoints with a rate above zero.
        batch_size: number of training examples in a step.
        chunk: number of training examples over which all checkpoints are
            summed before the next ones are read.
        memory: estimated peak in bytes, that of `top_k` or `self_influence`:
            without the input data, and without the matrix that `influence`
            returns.
        weights: bytes of `memory` for weights: the model's own while it is
            lent others, the state of an optimizer. No limit makes it less.
        num_blocks: number of blocks of queries; the training examples'
            gradients are computed anew for each.
        sparing: whether queries are held in the form that takes the least
            memory, since gradients would else be computed anew too often.
        seconds: estimated time, None where it was not asked for or the data
            does not tell how many examples there are.
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
    exact: bool = True

    @property
    def steps(self) -> int | None:
        """Batches of one block over all checkpoints; None if not known."""
        if self.num_train is None:
            return None
        batches = math.ceil(self.num_train / self.batch_size)
        return batches * self.num_checkpoints

    @property
    def work(self) -> str:
        """Numbers of examples, queries and checkpoints, and batches."""
        train = "?" if self.num_train is None else f"{self.num_train:,}"
        work = f"{'' if self.exact else 'about '}{train} training examples"
        if self.num_queries:
            work += f" × {self.num_queries:,} queries"
        if self.num_blocks > 1:
            work += f" (in {self.num_blocks:,} blocks)"
        plural = "" if self.num_checkpoints == 1 else "s"
        parts = [f"{work} × {self.num_checkpoints} checkpoint{plural}"]
        if self.sparing:
            parts.append("factors in their smallest form")
        return ", ".join([*parts, f"batches of {self.batch_size}"])

    @property
    def space(self) -> str:
        """The memory, in words."""
        space = f"about {max(1, round(self.memory / 2**20)):,} MB of memory"
        if 2 * self.weights > self.memory:
            space += f" ({self.weights / 2**20:,.0f} MB for weights)"
        return space

    def __str__(self) -> str:
        parts = [self.work, self.space]
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


def make_plan(
    train: Examples,
    *,
    num_queries: int,
    num_checkpoints: int,
    footprint: Footprint,
    bytes_per_query: int,
    execution: Execution,
    query_batch: int = 0,
    weights: int = 0,
    loading: int = 0,
    prepared: int = 0,
    gathered: int = 0,
) -> Plan:
    """Chooses batches and chunks that fit the memory limit.

    A quarter each of the limit goes to a step, to a chunk and to the queries,
    which are held twice while their batches are joined.

    Args:
        train: the training examples.
        num_queries: number of queries whose gradients are held; 0 for
            self-influence.
        num_checkpoints: number of checkpoints to sum over.
        footprint: memory that a step takes for each training example.
        bytes_per_query: size of the gradients of one query, as they are held.
        execution: the limits.
        query_batch: number of queries whose gradients are made in one step,
            which is taken to need as much memory as one of training examples.
        weights: bytes of weights that are held throughout.
        loading: bytes that are needed while a checkpoint is loaded, when no
            step is running.
        prepared: bytes that steps are given beside the queries, of the size
            of weights.
        gathered: bytes that are held for each training example of a chunk,
            beside its scores.
    """
    room = execution.memory // 4
    batch = min(
        execution.largest_tensor // max(1, footprint.largest),
        min(room, execution.largest_step) // max(1, footprint.peak),
    )
    smallest, largest = execution.batch_sizes
    batch = min(max(2 ** int(math.log2(max(1, batch))), smallest), largest)
    row = 4 * max(1, num_queries) + train.bytes_read_per_example + gathered
    chunk = max(batch, room // row)
    count = train.expected_size
    known = chunk if count is None else min(chunk, count)
    working = (
        prepared
        + max(min(batch, known), query_batch) * footprint.peak
        + 2 * num_queries * bytes_per_query  # once more while joined
        + known * row
    )
    return Plan(
        num_train=count,
        num_queries=num_queries,
        num_checkpoints=num_checkpoints,
        batch_size=batch,
        chunk=chunk,
        memory=footprint.fixed + weights + max(working, loading),
        weights=weights + prepared + max(0, loading - working),
        exact=train.size == count,
    )
