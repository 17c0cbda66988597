"""From training examples to shards of rows.

Beside the rows, the exact scores of a few queries are kept: they come from the
same pass, and are what the search is measured against. The queries are
training examples themselves, spread over the first shard.

Synopsis:

    queries = select_queries(recipe, 20)
    write_rows(store, recipe, examples, dtype="float32", queries=queries)
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_tracin.data.examples import Batch, Examples, content_digest, joined
from keras_tracin.engine.spot_checks import SpotChecks
from keras_tracin.engine.sweep import in_chunks
from keras_tracin.index.search import NEAR
from keras_tracin.index.store import Store
from keras_tracin.methods.indexable import RowRecipe
from keras_tracin.runs import run_weights
from keras_tracin.storage.files import check_room
from keras_tracin.storage.sharing import wait_for_worker

_SHARD = 64 * 2**20  # bytes of rows, about
BATCH = 256  # fixed, so that a resumed build has the same bits


def select_queries(recipe: RowRecipe, count: int) -> Batch:
    """`count` training examples, spread over those of the first shard."""
    batches = recipe.scorer.train.batches(BATCH)
    size = examples_per_shard(recipe, "float32")
    whole = joined(next(in_chunks(batches, size)))
    chosen = np.unique(np.linspace(0, len(whole) - 1, count).astype(int))
    data = tf.nest.map_structure(lambda leaf: leaf[chosen], whole.data)
    return Batch(whole.ids[chosen], *data)


def write_rows(
    store: Store,
    recipe: RowRecipe,
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
        recipe: how rows are made.
        examples: the training examples.
        dtype: of the rows.
        queries: those whose exact scores are kept, if any.
        name: gives a batch's ids.
        worker: this process's index, and how many share the work. Each writes
            every n-th shard, and the first lists all.

    Raises:
        OSError: if the disk is too small, or full.
        ValueError: if other examples were begun with, or if a gradient is
            NaN or infinite, naming ids.
    """
    index, workers = worker
    _check_room(store, recipe, examples, dtype)
    maker = ShardMaker(recipe, dtype, queries)
    first = store.manifest.finished
    digests: dict[int, str] = {}  # of the shards that were read
    with run_weights(recipe.scorer.model) as load:
        size = examples_per_shard(recipe, dtype)
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
            elif own or (index == 0 and shard < store.manifest.num_shards):
                store.check_examples(shard, digests[shard])
            if index == 0:
                _take(store, digests)
    while index == 0 and store.manifest.num_shards < first + len(digests):
        shard = store.manifest.num_shards
        wait_for_worker(
            functools.partial(store.is_there, shard),
            shard % workers,
            workers,
            f"shard {shard} of the index in {store.directory}",
        )
        _take(store, digests)


def _take(store: Store, digests: dict[int, str]) -> None:
    """Lists what is there of the shards whose examples are known."""
    shard = store.manifest.num_shards
    while shard in digests and store.is_there(shard):
        store.take(shard, digests[shard])
        shard += 1


def _check_room(
    store: Store, recipe: RowRecipe, examples: Examples, dtype: str
) -> None:
    if examples.size is None:
        return
    numbers, near = np.dtype(dtype).itemsize, np.dtype(np.float32).itemsize
    row = recipe.width * numbers + NEAR * near
    check_room(
        store.directory,
        max(0, examples.size - store.pending) * row,
        "index",
        "Free space, choose another directory, `dtype='float16'`, or a "
        "projection of a smaller `dim`",
    )


class ShardMaker:
    """Makes the arrays of shards.

    Args:
        recipe: how rows are made.
        dtype: of the rows.
        queries: those whose exact scores are kept, if any.
    """

    def __init__(self, recipe: RowRecipe, dtype: str, queries: Batch | None):
        self._recipe, self._dtype = recipe, dtype
        self._pass_at = _passes(recipe, queries)

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
        arrays = _arrays(chunk, self._recipe, self._pass_at, load)
        rows = _narrow(arrays.pop("rows"), self._dtype)
        ids = np.concatenate([batch.ids for batch in named])
        return {"rows": rows, **arrays, "ids": ids}


def examples_per_shard(recipe: RowRecipe, dtype: str) -> int:
    """How many examples a shard has, all but the last: whole batches."""
    row = recipe.width * np.dtype(dtype).itemsize
    return BATCH * max(1, math.ceil(_SHARD / (row * BATCH)))


def _passes(recipe: RowRecipe, queries: Batch | None) -> Callable:
    """`(position, rate) -> (data -> sketches [n, dim], scores [n, m])`.

    To be called once the weights are in the model.
    """
    if queries is None:
        sketch = recipe.scorer.train_steps.sketches(recipe.train_projection)
        return lambda at, rate: lambda data: (sketch(data, at), None)
    steps = recipe.scorer.steps_like(queries)
    both = steps.train.sketches_and_products(recipe.train_projection)

    def pass_at(at, rate):
        factors = steps.query.query_factors(queries.data)
        return lambda data: both(data, factors, rate, at)

    return pass_at


def _arrays(
    chunk: list[Batch], recipe: RowRecipe, pass_at: Callable, load: Callable
) -> dict[str, np.ndarray]:
    """Rows `[n, width]`, and exact scores `[n, m]` where there are queries."""
    rows = np.empty([sum(map(len, chunk)), recipe.width], np.float32)
    exact: list[np.ndarray] = []  # of each batch
    scorer, dim = recipe.scorer, recipe.train_projection.dim
    spots = SpotChecks(scorer.model, scorer.loss, scorer.jit_compile)
    for at, (checkpoint, rate) in enumerate(recipe.rates.items()):
        if checkpoint is not None:
            load(checkpoint)
        recipe.scorer.first_look()
        step = pass_at(np.int32(at), np.float32(rate))
        columns = slice(at * dim, (at + 1) * dim)
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
                recipe.scorer.raise_bad_training(batch, checkpoint)
            if scores is not None and at == 0:
                exact.append(scores.numpy())
            elif scores is not None:
                exact[place] = exact[place] + scores.numpy()
    if not exact:
        return {"rows": rows}
    return {"rows": rows, "exact": np.concatenate(exact)}


def _narrow(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16" and np.abs(rows).max() > np.finfo(np.float16).max:
        raise ValueError(
            "A row does not fit float16: its largest number is "
            f"{np.abs(rows).max():.3g}. Build with dtype='float32'."
        )
    return rows.astype(dtype, copy=False)
