"""From training examples to shards of rows.

Beside the rows, the exact scores of a few queries are kept: they come from the
same pass, and are what the search is measured against. The queries are
training examples themselves, spread over the first shard.

Synopsis:

    queries = select_queries(recipe, 20)
    write_rows(store, recipe, examples, kept=Kept("float32"), queries=queries)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from keras_tracin.data.batches import Batch, Examples, content_digest, join
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink, read_chunks
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.planning import Plan
from keras_tracin.engine.sweep import plan_pass, sweep
from keras_tracin.index.rounding import Kept
from keras_tracin.index.search import NEAR
from keras_tracin.index.shard_pass import shard_pass
from keras_tracin.index.store import Store
from keras_tracin.methods.indexable import RowRecipe
from keras_tracin.storage.files import check_room
from keras_tracin.storage.sharing import wait_for_worker

BATCH = 256  # fixed, so that a resumed build has the same bits


def select_queries(recipe: RowRecipe, count: int) -> Batch:
    """Selects training examples spread over those of the first shard.

    Args:
        recipe: how rows are made.
        count: number of examples, if there are as many.
    """
    size = examples_per_shard(recipe, "float32")
    chunk = next(iter(read_chunks(recipe.engine.train, BATCH, size)))
    whole = join(list(chunk.batches))
    places = np.unique(np.linspace(0, len(whole) - 1, count).astype(int))
    return whole.take(places)


def write_rows(
    store: Store,
    recipe: RowRecipe,
    examples: Examples,
    *,
    kept: Kept,
    queries: Batch | None,
    name: Callable[[Batch], np.ndarray] = lambda batch: batch.ids,
    worker: tuple[int, int] = (0, 1),
) -> None:
    """Writes the shards of some examples that are not there yet.

    Returns once all are listed, or, in processes other than the first, once
    all of this process's own are written.

    Args:
        store: the files of the index.
        recipe: how rows are made.
        examples: the training examples.
        kept: in which form rows are kept.
        queries: those whose exact scores are kept, if any.
        name: returns the ids that are kept of a batch.
        worker: index of this process and number of processes. Each writes
            every n-th shard, and the first lists all.

    Raises:
        OSError: if the disk is too small, or full.
        ValueError: if other examples were begun with, or if a gradient is
            NaN or infinite, naming ids.
    """
    _check_room(store, recipe, examples, kept)
    size = examples_per_shard(recipe, kept.dtype)
    work = shard_pass(recipe, queries)
    writer = _ShardWriter(store, kept, name, worker)
    sweep(
        recipe.engine,
        work,
        Sink(writer.write, writer.wants),
        Call(verbose=0),
        chunks=read_chunks(examples, BATCH, size),
        plan=dataclasses.replace(
            _plan(recipe, work, examples.expected_size, size),
            exact=examples.size is not None,
        ),
    )
    writer.wait_for_others()


def make_shard(
    recipe: RowRecipe,
    work: Pass,
    batches: list[Batch],
    kept: Kept,
    num_examples: int,
) -> dict[str, np.ndarray]:
    """Makes the arrays of one shard, by kind.

    Args:
        recipe: how rows are made.
        work: the pass that makes them, see `shard_pass`.
        batches: examples of the shard.
        kept: in which form rows are kept.
        num_examples: number of examples of all shards.

    Raises:
        ValueError: if a gradient is NaN or infinite, naming ids, or a row
            does not fit the dtype.
    """
    chunk = Chunk(0, 0, tuple(batches))
    shards: list[dict[str, np.ndarray]] = []
    sweep(
        recipe.engine,
        work,
        Sink(lambda ids, arrays: shards.append(kept.arrays(arrays, ids))),
        Call(verbose=0),
        chunks=[chunk],
        plan=_plan(recipe, work, num_examples, len(chunk)),
    )
    return shards[0]


def examples_per_shard(recipe: RowRecipe, dtype: str) -> int:
    """Number of examples in a shard, but for the last: whole batches."""
    row = recipe.width * np.dtype(dtype).itemsize
    shard = recipe.engine.execution.shard
    return BATCH * max(1, math.ceil(shard / (row * BATCH)))


class _ShardWriter:
    """Writes the shards of this process; in the first process, lists all.

    Args:
        store: the files of the index.
        kept: in which form rows are kept.
        name: returns the ids that are kept of a batch.
        worker: index of this process and number of processes.
    """

    def __init__(
        self,
        store: Store,
        kept: Kept,
        name: Callable[[Batch], np.ndarray],
        worker: tuple[int, int],
    ):
        self._store, self._kept, self._name = store, kept, name
        self._index, self._workers = worker
        self._first = store.manifest.finished
        self._digests: dict[int, str] = {}  # of the shards that were read
        self._shard, self._ids = 0, np.zeros(0)  # of the shard to be written

    def wants(self, chunk: Chunk) -> bool:
        """Whether a chunk is a shard that this process has to write."""
        store, shard = self._store, self._first + chunk.number
        own = shard % self._workers == self._index
        named = [
            dataclasses.replace(batch, ids=self._name(batch))
            for batch in chunk.batches
        ]
        if own or self._index == 0:
            self._digests[shard] = content_digest(named)
        if own and not store.is_there(shard):
            self._shard = shard
            self._ids = np.concatenate([batch.ids for batch in named])
            return True
        if own or (self._index == 0 and shard < store.manifest.num_shards):
            store.check_examples(shard, self._digests[shard])
        self._list()
        return False

    def write(self, ids: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
        """Writes the shard that was asked for last."""
        kept = self._kept.arrays(arrays, self._ids)
        self._store.put(self._shard, kept, self._digests[self._shard])
        self._list()

    def wait_for_others(self) -> None:
        """In the first process, returns once the shards of all are listed."""
        store = self._store
        stop = self._first + len(self._digests)
        while self._index == 0 and store.manifest.num_shards < stop:
            shard = store.manifest.num_shards
            wait_for_worker(
                functools.partial(store.is_there, shard),
                shard % self._workers,
                self._workers,
                f"shard {shard} of the index in {store.directory}",
            )
            self._list()

    def _list(self) -> None:
        """Lists what is there of the shards whose examples are known."""
        shard = self._store.manifest.num_shards
        while (
            self._index == 0
            and shard in self._digests
            and self._store.is_there(shard)
        ):
            self._store.take(shard, self._digests[shard])
            shard += 1


def _plan(
    recipe: RowRecipe, work: Pass, num_train: int | None, size: int
) -> Plan:
    """The plan of a pass with the batches and chunks of shards."""
    return dataclasses.replace(
        plan_pass(recipe.engine, work),
        num_train=num_train,
        batch_size=BATCH,
        chunk=size,
    )


def _check_room(
    store: Store, recipe: RowRecipe, examples: Examples, kept: Kept
) -> None:
    if examples.size is None:
        return
    near = NEAR * np.dtype(np.float32).itemsize
    row = kept.bytes_of_row(recipe.width) + near
    check_room(
        store.directory,
        max(0, examples.size - store.pending) * row,
        "index",
        "Free space, choose another directory, `dtype='int8'`, or a "
        "projection of a smaller `dim`",
    )
