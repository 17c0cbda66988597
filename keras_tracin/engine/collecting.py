"""From streams of scores to results, in memory or by way of parts on disk.

A method says how the scores of one block of queries stream into a `Sink`; here
the chunks become an `Attribution`, a `TopK` or a `SelfInfluence`. With `Parts`
each chunk is kept as soon as it is done, one that is kept already is passed
over, and a matrix of scores is mapped from its file.

Synopsis:

    def stream(queries, sink):
        sink.add(ids, scores)  # for each chunk of training examples

    influence(blocks, stream)                     # Attribution
    top_k(blocks, stream, k, available, parts)    # TopK
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np

from keras_tracin.data.batches import content_digest
from keras_tracin.data.ids import find_repeated
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.sweep import Chunk, Sink
from keras_tracin.results import (
    Attribution,
    ScoreColumns,
    SelfInfluence,
    TopK,
    TopKMerger,
)


class Block(Protocol):
    """Queries whose scores are streamed together."""

    @property
    def ids(self) -> np.ndarray:
        """The queries' ids, in reading order."""


SomeBlock = TypeVar("SomeBlock", bound=Block)
Stream = Callable[[SomeBlock, Sink], None]
Arrays = dict[str, np.ndarray]


def influence(
    blocks: Iterable[SomeBlock],
    stream: Stream[SomeBlock],
    parts: Parts | None = None,
) -> Attribution:
    """All scores, from a function that streams those of one block."""
    if parts is not None:
        found = mapped(blocks, stream, parts)
        _warn_of_repeats(found["train_ids"])
        return Attribution(**found)
    rows = []
    for queries in blocks:
        columns = ScoreColumns()
        stream(queries, Sink(columns.add))
        rows.append((queries.ids, columns.scores))
    query_ids, scores = (
        arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        for arrays in zip(*rows, strict=True)
    )
    _warn_of_repeats(columns.ids)
    return Attribution(scores, query_ids, columns.ids)


def mapped(
    blocks: Iterable[SomeBlock], stream: Stream[SomeBlock], parts: Parts
) -> Arrays:
    """All scores of all blocks, mapped from a file.

    Returns:
        `scores [m, n]`, or with more axes where the stream's have them,
        `query_ids [m]` and `train_ids [n]`.
    """
    ids, count = [], 0
    for number, queries in enumerate(blocks):
        keeper = _Keeper(parts, number, queries, _as_they_are)
        stream(queries, keeper.sink)
        ids.append(queries.ids)
        count = keeper.count
    return parts.matrix(ids, count)


def top_k(
    blocks: Iterable[SomeBlock],
    stream: Stream[SomeBlock],
    k: int,
    available: int | None,
    parts: Parts | None = None,
) -> TopK:
    """The strongest of both sides, without ever holding all scores."""
    found = []
    for number, queries in enumerate(blocks):
        merger = TopKMerger(queries.ids, k, available)
        if parts is None:
            stream(queries, Sink(merger.add))
        else:
            keeper = _Keeper(parts, number, queries, merger.best_of)
            stream(queries, keeper.sink)
            for arrays in parts.all_of(number, keeper.count):
                merger.add_best(**arrays)
        found.append(merger.result())
    ranked = TopK.concat(found)
    for ranking in (ranked.proponents, ranked.opponents):
        for ids in ranking.ids:
            if len(set(ids.tolist())) < len(ids):
                _warn_of_repeats(ids)
                return ranked
    return ranked


def self_influence(
    stream: Callable[[Sink], None], parts: Parts | None = None
) -> SelfInfluence:
    """Each training example's own score, from a function that streams them."""
    columns = ScoreColumns()
    if parts is None:
        stream(Sink(columns.add))
    else:
        keeper = _Keeper(parts, 0, None, _as_they_are)
        stream(keeper.sink)
        for arrays in parts.all_of(0, keeper.count):
            columns.add(**arrays)
    _warn_of_repeats(columns.ids)
    return SelfInfluence(scores=columns.scores, ids=columns.ids)


def _warn_of_repeats(ids: np.ndarray) -> None:
    """Scores name an example by its id; this says when it has several."""
    twice = find_repeated(ids)
    if twice:
        warnings.warn(
            "Some training examples have an id in common, so that scores do "
            f"not say which of them is meant. Received {twice[:5]} more than "
            "once. Give each its own by `kt.with_ids(data, ids)`, or leave out "
            "`.repeat()`.",
            stacklevel=4,
        )


def _as_they_are(ids: np.ndarray, scores: np.ndarray) -> Arrays:
    return {"ids": ids, "scores": scores}


class _Keeper:
    """Puts the chunks of one block of queries among the finished parts.

    Attributes:
        count: how many chunks went by.
    """

    def __init__(
        self,
        parts: Parts,
        block: int,
        queries: Any,
        reduce: Callable[[np.ndarray, np.ndarray], Arrays],
    ):
        self._parts, self._block, self._reduce = parts, block, reduce
        self._queries = content_digest(getattr(queries, "batches", ()))
        self._digest = ""
        self.count = 0

    @property
    def sink(self) -> Sink:
        return Sink(self._add, self._wants)

    def _wants(self, chunk: Chunk) -> bool:
        self.count = chunk.number + 1
        self._digest = content_digest(chunk.batches, self._queries)
        return self._parts.wants(self._block, chunk.number, self._digest)

    def _add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        arrays = self._reduce(ids, scores)
        self._parts.put(self._block, self.count - 1, self._digest, **arrays)
