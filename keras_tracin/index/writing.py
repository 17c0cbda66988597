"""From training examples to shards of rows.

Beside the rows, the exact scores of a few queries are kept: they come from the
same pass, and are what the search is measured against. The queries are
training examples themselves, spread over the first shard.

Synopsis:

    queries = queries_among(source, 20)
    write_rows(store, source, examples, dtype="float32", queries=queries)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from keras_tracin.data.batches import Batch, Examples, content_digest, join
from keras_tracin.engine.chunks import in_chunks
from keras_tracin.engine.looking import look
from keras_tracin.engine.sketch_steps import sketches, sketches_and_products
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.steps import kind_of
from keras_tracin.index.search import NEAR
from keras_tracin.index.source import Source
from keras_tracin.index.store import Store
from keras_tracin.runs import run_weights
from keras_tracin.storage.sharing import wait_for_worker

_SHARD = 64 * 2**20  # bytes of rows, about
BATCH = 256  # fixed, so that a resumed build has the same bits


def queries_among(source: Source, count: int) -> Batch:
    """`count` training examples, spread over those of the first shard."""
    batches = source.engine.train.batches(BATCH)
    size = examples_per_shard(source, "float32")
    whole = join(next(in_chunks(batches, size)))
    chosen = np.unique(np.linspace(0, len(whole) - 1, count).astype(int))
    return whole.take(chosen)


def write_rows(
    store: Store,
    source: Source,
    examples: Examples,
    *,
    dtype: str,
    queries: Batch | None,
    name: Callable[[Batch], np.ndarray] = lambda batch: batch.ids,
    worker: tuple[int, int] = (0, 1),
) -> None:
    """Writes the shards of some examples that are not there yet.

    Returns once all are listed, or, in processes other than the first, once
    all of this process's own are written.

    Args:
        store: where to.
        source: what makes the rows.
        examples: the training examples.
        dtype: of the rows.
        queries: those whose exact scores are kept, if any.
        name: gives a batch's ids.
        worker: this process's index, and how many share the work. Each writes
            every so-manieth shard, and the first lists all.

    Raises:
        OSError: if the disk is too small, or full.
        ValueError: if other examples were begun with, or if a gradient is
            NaN or infinite, naming ids.
    """
    index, workers = worker
    _check_room(store, source, examples, dtype)
    maker = ShardMaker(source, dtype, queries)
    first = store.finished
    digests: dict[int, str] = {}  # of the shards that were read
    with run_weights(source.engine.model) as load:
        size = examples_per_shard(source, dtype)
        chunks = in_chunks(examples.batches(BATCH), size)
        for shard, chunk in enumerate(chunks, first):
            named = [dataclasses.replace(b, ids=name(b)) for b in chunk]
            own = shard % workers == index
            if own or index == 0:
                digests[shard] = content_digest(named)
            if own and not store.is_there(shard):
                arrays = maker.arrays(chunk, named, load)
                store.put(shard, arrays, digests[shard])
                del arrays  # or two shards would be held at a time
            elif own or (index == 0 and shard < store.num_shards):
                store.holds(shard, digests[shard])
            if index == 0:
                _take(store, digests)
    while index == 0 and store.num_shards < first + len(digests):
        shard = store.num_shards
        wait_for_worker(
            functools.partial(store.is_there, shard),
            shard % workers,
            workers,
            f"shard {shard} of the index in {store.directory}",
        )
        _take(store, digests)


def _take(store: Store, digests: dict[int, str]) -> None:
    """Lists what is there of the shards whose examples are known."""
    while store.num_shards in digests and store.is_there(store.num_shards):
        store.take(store.num_shards, digests[store.num_shards])


def _check_room(
    store: Store, source: Source, examples: Examples, dtype: str
) -> None:
    if examples.size is None:
        return
    numbers, near = np.dtype(dtype).itemsize, np.dtype(np.float32).itemsize
    row = source.width * numbers + NEAR * near
    store.check_room(max(0, examples.size - store.pending) * row)


class ShardMaker:
    """Makes the arrays of shards.

    Args:
        source: what makes the rows.
        dtype: of the rows.
        queries: those whose exact scores are kept, if any.
    """

    def __init__(self, source: Source, dtype: str, queries: Batch | None):
        self._source, self._dtype = source, dtype
        self._pass_at = _passes(source, queries)

    def arrays(
        self, chunk: list[Batch], named: list[Batch], load: Callable
    ) -> dict[str, np.ndarray]:
        """The arrays of a shard, by kind.

        Args:
            chunk: its examples, with ids that errors call them by.
            named: the same with the ids that are kept.
            load: puts a checkpoint's weights into the model.

        Raises:
            ValueError: if a gradient is NaN or infinite, naming ids, or a row
                does not fit the dtype.
        """
        arrays = _arrays(chunk, self._source, self._pass_at, load)
        rows = _narrowed(arrays.pop("rows"), self._dtype)
        ids = np.concatenate([batch.ids for batch in named])
        return {"rows": rows, **arrays, "ids": ids}


def examples_per_shard(source: Source, dtype: str) -> int:
    """How many examples a shard has, all but the last: whole batches."""
    row = source.width * np.dtype(dtype).itemsize
    return BATCH * max(1, math.ceil(_SHARD / (row * BATCH)))


def _passes(source: Source, queries: Batch | None) -> Callable:
    """`(position, rate) -> (data -> sketches [n, dim], scores [n, m])`.

    To be called once the weights are in the model.
    """
    if queries is None:
        sketch = sketches(source.engine.train_steps, source.of_train)
        return lambda at, rate: lambda data: (sketch(data, at), None)
    steps = source.engine.steps_like(queries)
    both = sketches_and_products(steps.train, steps.query, source.of_train)

    def pass_at(at, rate):
        factors = steps.query.query_factors(queries.data)
        return lambda data: both(data, factors, rate, at)

    return pass_at


def _arrays(
    chunk: list[Batch], source: Source, pass_at: Callable, load: Callable
) -> dict[str, np.ndarray]:
    """Rows `[n, width]`, and exact scores `[n, m]` where there are queries."""
    rows = np.empty([sum(map(len, chunk)), source.width], np.float32)
    exact: list[np.ndarray] = []  # of each batch
    engine = source.engine
    spots = SpotChecks(engine.model, engine.loss, engine.execution.jit_compile)
    for at, (checkpoint, rate) in enumerate(source.rates.items()):
        if checkpoint is not None:
            load(checkpoint)
        look(source.engine)
        step = pass_at(np.int32(at), np.float32(rate))
        columns = slice(
            at * source.of_train.dim, (at + 1) * source.of_train.dim
        )
        stop = 0

        def again(data, step=step) -> np.ndarray:
            return step(data)[0].numpy().T

        for place, batch in enumerate(chunk):
            sketch, scores = step(batch.data)
            if at == 0:
                spots.look(place, batch, sketch.numpy().T, again)
            start, stop = stop, stop + len(batch)
            rows[start:stop, columns] = math.sqrt(rate) * sketch.numpy()
            if not np.isfinite(rows[start:stop, columns]).all():
                raise engine.not_finite(batch, checkpoint=checkpoint)
            if scores is not None and at == 0:
                exact.append(scores.numpy())
            elif scores is not None:
                exact[place] = exact[place] + scores.numpy()
    if not exact:
        return {"rows": rows}
    return {"rows": rows, "exact": np.concatenate(exact)}


def _narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16" and np.abs(rows).max() > np.finfo(np.float16).max:
        raise ValueError(
            "A row does not fit float16: its largest number is "
            f"{np.abs(rows).max():.3g}. Build with dtype='float32'."
        )
    return rows.astype(dtype, copy=False)


def check_form(examples: Examples, source: Source) -> None:
    """Raises ValueError unless new examples are in the form of the others."""
    received = kind_of(examples.first(1).data)
    expected = kind_of(source.engine.train.first(1).data)
    if received != expected:
        raise ValueError(
            "New training examples should be in the form of those in the "
            f"index. Received {received}, expected {expected}."
        )


class Naming:
    """Gives new examples their ids, and refuses those that are taken.

    Args:
        taken: the ids in the index.
        carried: whether new examples have ids of their own.
    """

    def __init__(self, taken: np.ndarray, carried: bool):
        self._taken = set(taken.tolist())
        self._carried = carried
        self._next = 0
        if not carried and taken.dtype.kind not in "iu":
            raise ValueError(
                "The ids in the index are no numbers that could go on: "
                f"received {taken[0]!r}, for one. Attach ids to the new "
                "examples, `kt.with_ids(data, ids).batch(...)`."
            )
        if not carried:
            self._next = int(taken.max()) + 1

    def __call__(self, batch: Batch) -> np.ndarray:
        if not self._carried:
            return self._next + batch.ids
        names = batch.ids.tolist()
        again = [name for name in names if name in self._taken]
        if again or len(set(names)) < len(names):
            raise ValueError(
                "Each training example needs an id of its own. Received again: "
                f"{again[:5] or names[:5]}. `kt.with_ids(data, ids)` gives "
                "others."
            )
        self._taken.update(names)
        return batch.ids
