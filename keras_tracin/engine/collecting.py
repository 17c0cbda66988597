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
from keras_tracin.data.ids import Reading, find_repeated
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.grouping import Groups, GroupSums
from keras_tracin.engine.parts import Parts
from keras_tracin.results import (
    Attribution,
    ScoreColumns,
    SelfInfluence,
    TokenInfluence,
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
    """All scores, from a function that streams those of one block.

    Args:
        blocks: the queries.
        stream: streams the scores of one block into a sink.
        parts: finished parts on disk, if they are kept.
    """
    if parts is not None:
        arrays = mapped(blocks, stream, parts)
        warn_of_repeats(arrays["train_ids"])
        return Attribution(**arrays)
    scores, query_ids, train_ids = _in_memory(blocks, stream)
    warn_of_repeats(train_ids)
    return Attribution(scores, query_ids, train_ids)


def token_influence(
    blocks: Iterable[SomeBlock], stream: Stream[SomeBlock]
) -> TokenInfluence:
    """Scores by token, from a function that streams those of one block.

    Args:
        blocks: the queries.
        stream: streams `[m, tokens + 1, c]` of one block into a sink, the
            rest after the last token.
    """
    scores, query_ids, train_ids = _in_memory(blocks, stream)
    warn_of_repeats(train_ids)
    tokens = np.ascontiguousarray(np.moveaxis(scores[:, :-1], 1, 2))
    return TokenInfluence(tokens, scores[:, -1], query_ids, train_ids)


def _in_memory(
    blocks: Iterable[SomeBlock], stream: Stream[SomeBlock]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores `[m, ..., n]` of all blocks, the queries' ids and examples'."""
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    train_ids = np.zeros(0)
    for queries in blocks:
        columns = ScoreColumns()
        stream(queries, Sink(columns.add))
        ids, scores = columns.ids, columns.scores
        if not rows:
            train_ids = ids
        elif not np.array_equal(ids, train_ids):  # the data shuffles
            scores = scores[..., Reading(ids, "train").places(train_ids)]
        rows.append((queries.ids, scores))
    query_ids, scores = _join_rows(rows)
    return scores, query_ids, train_ids


def group_influence(
    blocks: Iterable[SomeBlock],
    stream: Stream[SomeBlock],
    groups: Groups,
    parts: Parts | None = None,
) -> Attribution:
    """Sums of scores over groups of training examples.

    Args:
        blocks: the queries.
        stream: streams the scores of one block into a sink.
        groups: the groups' ids.
        parts: finished parts on disk, if they are kept.

    Returns:
        An `Attribution` whose `train_ids` are the groups' names.

    Raises:
        ValueError: if an id is not among the training examples.
    """
    rows, names = [], np.array(list(groups))
    for number, queries in enumerate(blocks):
        sums = GroupSums(groups, len(queries.ids))
        if parts is None:
            stream(queries, Sink(sums.add))
        else:
            keeper = Keeper(parts, number, queries, sums.part_of)
            stream(queries, keeper.sink)
            for arrays in parts.read(number, keeper.count):
                sums.add_part(**arrays)
        rows.append((queries.ids, sums.result()))
    query_ids, scores = _join_rows(rows)
    return Attribution(scores, query_ids, names)


def _join_rows(
    rows: list[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """The ids and scores of all blocks; those of a single one are no copy."""
    query_ids, scores = (
        arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        for arrays in zip(*rows, strict=True)
    )
    return query_ids, scores


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
        keeper = Keeper(parts, number, queries, whole_part)
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
    """The strongest of both sides, without ever holding all scores.

    Args:
        blocks: the queries.
        stream: streams the scores of one block into a sink.
        k: number of examples on each side.
        available: number of training examples, None where it is not known.
        parts: finished parts on disk, if they are kept.
    """
    rankings = []
    for number, queries in enumerate(blocks):
        merger = TopKMerger(queries.ids, k, available)
        if parts is None:
            stream(queries, Sink(merger.add))
        else:
            keeper = Keeper(parts, number, queries, merger.best_of)
            stream(queries, keeper.sink)
            for arrays in parts.read(number, keeper.count):
                merger.add_best(**arrays)
        rankings.append(merger.result())
    ranked = TopK.concat(rankings)
    for ranking in (ranked.proponents, ranked.opponents):
        for ids in ranking.ids:
            if len(set(ids.tolist())) < len(ids):
                warn_of_repeats(ids)
                return ranked
    return ranked


def self_influence(
    stream: Callable[[Sink], None], parts: Parts | None = None
) -> SelfInfluence:
    """Each training example's own score, from a function that streams them.

    Args:
        stream: streams the scores into a sink.
        parts: finished parts on disk, if they are kept.
    """
    columns = ScoreColumns()
    if parts is None:
        stream(Sink(columns.add))
    else:
        keeper = Keeper(parts, 0, None, whole_part)
        stream(keeper.sink)
        for arrays in parts.read(0, keeper.count):
            columns.add(**arrays)
    warn_of_repeats(columns.ids)
    return SelfInfluence(scores=columns.scores, ids=columns.ids)


def warn_of_repeats(ids: np.ndarray) -> None:
    """Warns of ids that several examples have, which scores cannot name."""
    repeated = find_repeated(ids)
    if repeated:
        warnings.warn(
            "Some training examples have an id in common, so that scores do "
            f"not say which of them is meant. Received {repeated[:5]} more "
            "than once. Give each its own by `kt.with_ids(data, ids)`, or "
            "leave out `.repeat()`.",
            stacklevel=4,
        )


def whole_part(ids: np.ndarray, scores: np.ndarray) -> Arrays:
    """The arrays of a part with all scores."""
    return {"ids": ids, "scores": scores}


class Keeper:
    """Puts the chunks of one block of queries among the finished parts.

    Args:
        parts: the finished parts.
        block: the number of the block.
        queries: its queries; None for self-influence.
        reduce: makes the arrays of a part, of ids `[c]` and scores `[..., c]`.

    Attributes:
        count: number of chunks that went by.
        digest: digest of the queries and of the chunk that was last.
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
        self.digest = ""
        self.count = 0

    @property
    def sink(self) -> Sink:
        """Keeps what it takes, and wants no chunk that is kept already."""
        return Sink(self._add, self._wants)

    def _wants(self, chunk: Chunk) -> bool:
        self.count = chunk.number + 1
        self.digest = content_digest(chunk.batches, self._queries)
        return self._parts.wants(self._block, chunk.number, self.digest)

    def _add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        arrays = self._reduce(ids, scores)
        self._parts.put(self._block, self.count - 1, self.digest, **arrays)
