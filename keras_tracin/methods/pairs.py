"""Queries that are scored with others in view, one for each of them.

Under `normalize="both"` the difference of a pair's gradients has unit length,
at each checkpoint: the scores of one side need the gradients of both.

Synopsis:

    pair = Pair(test, contrast)
    for queries in blocks_of_pairs(engine, pair, call):
        queries.others               # the queries of `contrast`
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

from keras_tracin.data.batches import content_digest
from keras_tracin.engine.blocks import blocks
from keras_tracin.engine.call import Call
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.queries import Queries
from keras_tracin.methods.contrast import unequal_pairs

_DIGESTED = 256  # examples at a time


@dataclasses.dataclass(frozen=True)
class Pair:
    """Queries, and as many others by whose difference lengths are measured.

    Attributes:
        asked: the queries that are scored.
        other: one for each of them.
    """

    asked: Any
    other: Any


def blocks_of_pairs(
    engine: Engine, pair: Pair, call: Call, bytes_per_query: int | None = None
) -> Iterator[Queries]:
    """Blocks of the queries of one side, which know those of the other.

    Args:
        engine: the model.
        pair: the queries.
        call: the call that they are for.
        bytes_per_query: as in `blocks`.

    Raises:
        ValueError: if there are more of one side.
    """
    sides = pair.asked, pair.other
    if bytes_per_query is None:
        bytes_per_query = sum(
            engine.open_queries(side)[1].query.factor_bytes for side in sides
        )
    # Of as many bytes each, both have as many queries in a block.
    both = (blocks(engine, side, call, bytes_per_query) for side in sides)
    for own, other in itertools.zip_longest(*both):
        counts = [0 if side is None else len(side.ids) for side in (own, other)]
        if counts[0] != counts[1]:
            raise unequal_pairs(*counts)
        yield dataclasses.replace(own, others=other)


def digest_of(engine: Engine, test: Any) -> str:
    """A digest of queries, for the parts on disk."""
    examples, _ = engine.open_queries(test)
    return content_digest(examples.batches(_DIGESTED))
