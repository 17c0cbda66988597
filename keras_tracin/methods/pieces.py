"""A call of a method in pieces, for a scheduler to run wherever it likes.

A piece is a block of queries × a chunk of training examples. It names what it
needs by text and numbers: a factory that makes the method, a directory that all
machines share, and the piece's own numbers. Pieces run in any order and any
process, and again where one was lost. The result is the same, to the bit, as
the method's call makes it in one process with this `directory=`, and such a
call goes on from pieces that are there.

Synopsis:

    pieces = ScorePieces("top_k", "project.attribution:make_tracin",
                         "/shared/scores", test="project.attribution:queries")
    numbers = pieces.begin()                             # one process
    digests = {n: pieces.compute(n) for n in numbers}    # anywhere
    top = pieces.finish(digests)                         # one process
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, Literal

from keras_tracin.engine import collecting
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.distribution import worker_of
from keras_tracin.engine.finished import FinishedParts
from keras_tracin.engine.parts import Parts
from keras_tracin.engine.ranges import Ranges, imported
from keras_tracin.engine.sweep import plan_pass
from keras_tracin.methods.base import Method
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results import (
    Attribution,
    SelfInfluence,
    TopK,
    TopKMerger,
)

Piece = tuple[int, int]  # the block of queries, the chunk of training examples


@dataclasses.dataclass(frozen=True)
class ScorePieces:
    """The pieces of one call of a method that passes over training examples.

    Attributes:
        call: "top_k", "self_influence" or "influence".
        factory: "module:attribute" of a function without arguments that
            returns the method. It is called once in each process that runs
            pieces.
        directory: where finished pieces are kept, as the `directory=` of the
            call itself; all processes share it.
        test: "module:attribute" of a function without arguments that returns
            the queries. None for "self_influence", which has none.
        k: number of training examples on each side, for "top_k".
        num_examples: number of training examples; needed where the data does
            not tell, as with a dataset whose last batch is smaller.
        read: "module:attribute" of a function `(start, stop)` that returns
            those of the training examples, in reading order, in the form of
            the method's own. Without it a dataset is read from its beginning
            for each piece; arrays are cut.

    Raises:
        ValueError: if `call` is none of these, or needs `test` and has none.
    """

    call: Literal["top_k", "self_influence", "influence"]
    factory: str
    directory: str
    test: str | None = None
    k: int = 10
    num_examples: int | None = None
    read: str | None = None

    def __post_init__(self) -> None:
        calls = ("top_k", "self_influence", "influence")
        if self.call not in calls:
            raise ValueError(f"Received call={self.call!r}, expected {calls}.")
        if (self.test is None) != (self.call == "self_influence"):
            raise ValueError(
                "`test` names the function that returns the queries of "
                "'top_k' and 'influence'; 'self_influence' has none. Received "
                f"call={self.call!r} and test={self.test!r}."
            )

    @exclusive_access
    def begin(self) -> list[Piece]:
        """Begins the call, or goes on with it.

        Returns:
            The numbers of its pieces, those that are finished too: these take
            no more than a reading of their examples.

        Raises:
            TypeError: if the method makes no passes that could be cut.
            ValueError: as the call itself, and if it is not known how many
                training examples there are.
        """
        _begun.cache_clear()
        return _begun(self).pieces

    @exclusive_access
    def compute(self, piece: Piece) -> str:
        """Computes a piece, unless it is there.

        Args:
            piece: its numbers.

        Returns:
            The digest of its queries and examples, for `finish`.

        Raises:
            ValueError: if it was made from other examples, if `read` returns
                something else than was asked for, or if a gradient is NaN or
                infinite.
        """
        begun = _begun(self)
        block, number = piece
        start = number * begun.chunk
        stop = min(start + begun.chunk, begun.examples.count)
        batches = begun.examples.batches(start, stop, begun.batch_size)
        chunk = Chunk(number, start, tuple(batches))
        queries = begun.blocks[block]
        keeper = collecting.Keeper(
            begun.parts, block, queries, self._reduce(begun, queries)
        )
        call = dataclasses.replace(begun.call, chunk=chunk)
        if queries is None:
            begun.method.stream_self(keeper.sink, call)
        else:
            begun.method.stream(queries, keeper.sink, call)
        return keeper.digest

    @exclusive_access
    def finish(
        self, digests: Mapping[Piece, str]
    ) -> TopK | SelfInfluence | Attribution:
        """The result of the call, put together from all pieces.

        Args:
            digests: results of `compute`, by piece.

        Raises:
            ValueError: if a piece is missing or of other examples.
        """
        begun = _begun(self)
        missing = sorted(set(begun.pieces) - set(digests))
        if missing:
            raise ValueError(
                "Scores are put together from all of their pieces. Received "
                f"{len(digests)}, without {missing[:5]}. Compute them, and "
                "finish again."
            )
        parts = FinishedParts(begun.parts.directory, digests)
        if self.call == "self_influence":
            return collecting.self_influence(
                lambda sink: parts.offer(None, sink), parts
            )
        if self.call == "influence":
            return collecting.influence(begun.blocks, parts.offer, parts)
        count = begun.examples.count
        return collecting.top_k(begun.blocks, parts.offer, self.k, count, parts)

    def _reduce(self, begun: _Begun, queries: Any) -> Any:
        if self.call != "top_k":
            return collecting.whole_part
        merger = TopKMerger(queries.ids, self.k, begun.examples.count)
        return merger.best_of


@dataclasses.dataclass(frozen=True)
class _Begun:
    """A call that was begun in this process.

    Attributes:
        method: the method.
        call: the call.
        parts: its finished parts.
        examples: the training examples.
        blocks: the blocks of queries; a single None for self-influence.
        batch_size: number of training examples in a batch.
        chunk: number of training examples in a chunk, a multiple of it.
    """

    method: Method
    call: Call
    parts: Parts
    examples: Ranges
    blocks: list[Any]
    batch_size: int
    chunk: int

    @property
    def pieces(self) -> list[Piece]:
        """The numbers of all pieces."""
        chunks = math.ceil(self.examples.count / self.chunk)
        return [
            (block, chunk)
            for block in range(len(self.blocks))
            for chunk in range(chunks)
        ]


@functools.cache
def _begun(pieces: ScorePieces) -> _Begun:
    """The call, once in each process."""
    method = imported(pieces.factory)()
    _check_can_be_cut(method)
    test = None if pieces.test is None else imported(pieces.test)()
    options = {"k": pieces.k} if pieces.call == "top_k" else {}
    call = method.start(pieces.call, test, pieces.directory, 0, **options)
    assert call.parts is not None
    if test is None:
        blocks: list[Any] = [None]
        work = method.self_pass()
    else:
        blocks = list(method.blocks(test, call))
        work = method.query_pass(blocks[0])
    examples = Ranges(method.engine, pieces.num_examples, pieces.read)
    # The plan knows how many there are, or its chunks would be others.
    plan = plan_pass(method.engine, work)
    plan = call.cut(dataclasses.replace(plan, num_train=examples.count))
    batches = math.ceil(plan.chunk / plan.batch_size)
    return _Begun(
        method,
        call,
        call.parts,
        examples,
        blocks,
        plan.batch_size,
        batches * plan.batch_size,
    )


def _check_can_be_cut(method: Any) -> None:
    if not isinstance(method, Method) or not hasattr(method, "engine"):
        raise TypeError(
            "Pieces are of a method that passes over its training examples: "
            "`TracIn`, `TRAK`, `InfluenceFunctions`, `SOURCE`. Received a "
            f"`{type(method).__name__}`; call it itself, in one process."
        )
    if method.selected_ids is not None:
        raise ValueError(
            "Pieces are of all training examples. Received a "
            f"{type(method).__name__} with `among(...)`; make the method of "
            "these examples alone."
        )
    _, processes = worker_of(method.strategy)
    if processes > 1:
        raise ValueError(
            "Pieces are handed out by a scheduler. Received a process that is "
            f"one of {processes} of a cluster as well; unset `TF_CONFIG`."
        )
