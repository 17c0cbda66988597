"""Queries cut into blocks that fit memory.

Synopsis:

    for queries in blocks(engine, test, call):
        ...                              # `Queries`
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from keras_tracin.data.asked import check_asked
from keras_tracin.data.batches import Examples
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import in_chunks
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.queries import Queries, Steps


def blocks(
    engine: Engine,
    test: Any,
    call: Call | None = None,
    bytes_per_query: int | None = None,
) -> Iterator[Queries]:
    """Queries in blocks of one size that take no more than their share.

    Args:
        engine: the model.
        test: the queries.
        call: the call that they are for, if there is one.
        bytes_per_query: bytes that are held for each query; by default those
            of its factors.

    Raises:
        ValueError: if the model does not take them, or if one asks about none
            of its tokens.
    """
    call = call or Call()
    examples, steps = engine.open_queries(test)
    held = bytes_per_query
    if bytes_per_query is None:
        steps = _cheapest(engine, examples, steps, call)
        bytes_per_query = steps.query.factor_bytes
    size = _evenly(examples.expected_size, _room(engine, bytes_per_query))
    size = call.agree("block", size)
    batches = examples.batches(_evenly(size, engine.execution.query_batch))
    for block in in_chunks(batches, size):
        for batch in block:
            check_asked(batch)
        yield Queries(tuple(block), steps, held)


def all_queries(engine: Engine, test: Any) -> Queries:
    """All queries as one block, for methods that reduce them batch-wise."""
    examples, steps = engine.open_queries(test)
    batches = tuple(examples.batches(engine.execution.query_batch))
    for batch in batches:
        check_asked(batch)
    return Queries(batches, steps)


def _cheapest(
    engine: Engine, examples: Examples, steps: Steps, call: Call
) -> Steps:
    """The steps that hold queries in the form that costs least in all.

    The smallest form makes fewer blocks, for each of which all gradients of
    training examples are computed anew; the other multiplies faster.
    """
    count = examples.expected_size
    if count is None or engine.projection is not None:
        return steps

    def multiplications(sparing: bool) -> int:
        """For each training example, over all queries."""
        work = steps.query.work(sparing)
        block = max(1, _room(engine, work.nbytes))
        return count * work.pairing - (-count // block) * work.making

    sparing = multiplications(True) < multiplications(False)
    sparing = call.agree("sparing", sparing)
    return engine.steps_like(examples.first(1), True) if sparing else steps


def _room(engine: Engine, bytes_per_query: int) -> int:
    """Number of queries that a block may have."""
    # Twice the factors exist for a moment, while batches are joined.
    return engine.execution.memory // (8 * max(1, bytes_per_query))


def _evenly(count: int | None, most: int) -> int:
    """The size of as few equal parts as have no more than `most` each."""
    most = max(1, most)
    if not count:
        return most
    return math.ceil(count / math.ceil(count / most))
