"""Blocks of queries and chunks of training examples that fit memory.

Synopsis:

    size = block_size(memory, weights)               # queries in a block
    size = chunk_size(memory, columns=100, largest=1024)    # and in a chunk
    pour(scores_of, sink, ids, size)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.chunks import Chunk, Sink

LARGEST_BLOCK = 1024  # queries that are scored together

ScoresOf = Callable[[slice], np.ndarray]


def block_size(memory: int, weights: np.ndarray) -> int:
    """The number of queries in a block.

    Args:
        memory: bytes that may be used.
        weights: the last layer's weights, `[f, k]`.
    """
    # For each its features and, under `lje`, one solution for each output.
    per_query = 8 * 3 * weights.size * weights.shape[1]
    size = min(max(1, memory // 8 // per_query), LARGEST_BLOCK)
    # A power of two, so that batches of whatever size fill it.
    return 2 ** int(math.log2(size))


def chunk_size(memory: int, columns: int, largest: int) -> int:
    """The number of training examples in a chunk.

    Args:
        memory: bytes that may be used.
        columns: number of scores for each training example.
        largest: largest number of scores in a chunk.
    """
    return max(1, min(memory // (8 * 8), largest) // columns)


def pour(scores_of: ScoresOf, sink: Sink, ids: np.ndarray, size: int) -> None:
    """Makes the scores that a sink wants, and pours them into it.

    Args:
        scores_of: makes the scores of the training examples in a slice.
        sink: takes them, chunk by chunk.
        ids: the training examples' ids, `[n]`.
        size: number of training examples in a chunk.
    """
    for number, start in enumerate(range(0, len(ids), size)):
        rows = slice(start, start + size)
        part = ids[rows]
        if sink.wants(Chunk(number, start, (Batch(part, None),))):
            sink.add(part, scores_of(rows))


def filling(scores: np.ndarray) -> Sink:
    """A sink that fills `scores [m, n, k]` along the second axis."""
    stop = 0

    def add(ids: np.ndarray, part: np.ndarray) -> None:
        nonlocal stop
        start, stop = stop, stop + len(ids)
        scores[:, start:stop] = part

    return Sink(add)
