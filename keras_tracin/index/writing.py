"""From training examples to shards of rows.

Beside the rows, the exact scores of a few queries are kept: they come from the
same pass, and are what the search is measured against. The queries are
training examples themselves, spread over the first shard.

Synopsis:

    queries = queries_among(source, 20)
    write_rows(store, source, examples, dtype="float32", queries=queries)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_tracin.datasets import (
    Batch,
    Examples,
    content_digest,
    joined,
)
from keras_tracin.gradients.functions import kind_of
from keras_tracin.index.search import NEAR
from keras_tracin.index.source import Source
from keras_tracin.index.store import Store
from keras_tracin.runs import run_weights
from keras_tracin.sweep import in_chunks

_SHARD = 64 * 2**20  # bytes of rows, about
_BATCH = 256  # fixed, so that a resumed build has the same bits


def queries_among(source: Source, count: int) -> Batch:
    """`count` training examples, spread over those of the first shard."""
    batches = source.scorer.train.batches(_BATCH)
    whole = joined(next(in_chunks(batches, _rows_per_shard(source, "float32"))))
    chosen = np.unique(np.linspace(0, len(whole) - 1, count).astype(int))
    data = tf.nest.map_structure(lambda leaf: leaf[chosen], whole.data)
    return Batch(whole.ids[chosen], *data)


def write_rows(
    store: Store,
    source: Source,
    examples: Examples,
    *,
    dtype: str,
    queries: Batch | None,
    name: Callable[[Batch], np.ndarray] = lambda batch: batch.ids,
) -> None:
    """Writes the shards of some examples that are not there yet.

    Args:
        store: where to.
        source: what makes the rows.
        examples: the training examples.
        dtype: of the rows.
        queries: those whose exact scores are kept, if any.
        name: gives a batch's ids.

    Raises:
        OSError: if the disk is too small, or full.
        ValueError: if other examples were begun with, or if a gradient is
            NaN or infinite, naming ids.
    """
    scorer = source.scorer
    scorer.check_interaction()
    if examples.size is not None:
        row = (source.width + NEAR) * np.dtype(np.float32).itemsize
        if dtype == "float16":
            row -= source.width * np.dtype(np.float16).itemsize
        store.check_room(max(0, examples.size - store.pending) * row)
    pass_at = _passes(source, queries)
    first = store.finished
    with run_weights(scorer.model) as load:
        size = _rows_per_shard(source, dtype)
        chunks = in_chunks(examples.batches(_BATCH), size)
        for shard, chunk in enumerate(chunks, first):
            ids = np.concatenate([name(batch) for batch in chunk])
            digest = content_digest(chunk)
            if shard < store.num_shards:
                store.holds(shard, ids, digest)
                continue
            arrays = _arrays(chunk, source, pass_at, load)
            arrays["rows"] = _narrowed(arrays["rows"], dtype)
            store.append({**arrays, "ids": ids}, digest)
            del arrays  # or two shards would be held at a time


def _rows_per_shard(source: Source, dtype: str) -> int:
    return max(_BATCH, _SHARD // (source.width * np.dtype(dtype).itemsize))


def _passes(source: Source, queries: Batch | None) -> Callable:
    """`(position, rate) -> (data -> sketches [n, dim], scores [n, m])`.

    To be called once the weights are in the model.
    """
    if queries is None:
        sketch = source.scorer.train_steps.sketches(source.of_train)
        return lambda at, rate: lambda data: (sketch(data, at), None)
    steps = source.scorer.steps_like(queries)
    both = steps.train.sketches_and_products(source.of_train)

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
    for at, (checkpoint, rate) in enumerate(source.rates.items()):
        if checkpoint is not None:
            load(checkpoint)
        step = pass_at(np.int32(at), np.float32(rate))
        columns = slice(
            at * source.of_train.dim, (at + 1) * source.of_train.dim
        )
        stop = 0
        for place, batch in enumerate(chunk):
            sketch, scores = step(batch.data)
            start, stop = stop, stop + len(batch)
            rows[start:stop, columns] = math.sqrt(rate) * sketch.numpy()
            if not np.isfinite(rows[start:stop, columns]).all():
                source.scorer.raise_bad_training(batch, checkpoint)
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
    expected = kind_of(source.scorer.train.first(1).data)
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
