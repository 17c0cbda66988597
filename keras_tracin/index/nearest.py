"""Searches among short rows that are held in memory: all, a graph, cells.

Synopsis:

    nearest = search_all(near)              # near [n, r]
    nearest = by_faiss(make_graph(near))
    positions = nearest(queries, 100)       # [m, 100], of the largest products
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

COVERAGE = 0.99  # share of the best rows that are to be among the candidates

_LINKS = 32  # of each row in a graph
_TRIED = 200  # rows that a search in a graph keeps in sight, at least
_FEW = 8  # vectors for which one thread is enough
_PER_CELL = 64  # times the number of cells: rows that their centres come from

# `(queries [m, r], count) -> positions [m, count]`, -1 where there are fewer.
Nearest = Callable[[np.ndarray, int], np.ndarray]


def search_all(near: np.ndarray) -> Nearest:
    """A search that looks at all short rows: by faiss, or by TensorFlow.

    Args:
        near: the short rows `[n, r]`.
    """
    faiss = faiss_module()
    if faiss is None:
        return _by_tensorflow(near)
    index = faiss.IndexFlatIP(near.shape[1])
    index.add(near)
    return by_faiss(index)


def _by_tensorflow(near: np.ndarray) -> Nearest:
    rows = tf.constant(near)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, near.shape[1]], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def search(queries, count):
        scores = tf.matmul(queries, rows, transpose_b=True)
        return tf.math.top_k(scores, count).indices

    return lambda queries, count: search(queries, np.int32(count)).numpy()


def by_faiss(index: Any) -> Nearest:
    """A search in an index of faiss."""
    faiss = faiss_module()

    def search(queries, count):
        threads = faiss.omp_get_max_threads()
        if len(queries) <= _FEW:
            # Threads that wait for one another cost more than they save.
            faiss.omp_set_num_threads(1)
        try:
            return index.search(queries, count)[1]
        finally:
            faiss.omp_set_num_threads(threads)

    return search


def make_graph(near: np.ndarray) -> Any:
    """A navigable graph (Malkov & Yashunin 2018).

    Args:
        near: the short rows `[n, r]`.
    """
    faiss = faiss_module()
    index = faiss.IndexHNSWFlat(
        near.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = 80
    index.hnsw.efSearch = _TRIED
    index.add(near)
    return index


def make_cells(near: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> Any:
    """Cells around centres; enough of them are searched to find the best.

    Args:
        near: the short rows `[n, r]`.
        queries: short vectors `[m, r]` to try it with.
        truth: positions `[m, k]` of the best candidates of each.
    """
    faiss = faiss_module()
    cells = max(1, int(math.sqrt(len(near))))
    quantizer = faiss.IndexFlatIP(near.shape[1])
    index = faiss.IndexIVFFlat(
        quantizer, near.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.train(near[:: max(1, len(near) // (_PER_CELL * cells))])
    index.add(near)
    index.nprobe = max(1, cells // 64)
    while index.nprobe < cells:
        _, positions = index.search(queries, truth.shape[1])
        if mean_share(truth[:, :10], positions) >= COVERAGE:
            break
        index.nprobe = min(cells, 2 * index.nprobe)
    return index


def write_faiss(path: Path, index: Any) -> None:
    """Writes an index of faiss to a path.

    Raises:
        OSError: if the disk refuses a part of it, of which faiss, given a
            path, does not notice the last.
    """
    faiss = faiss_module()
    with open(path, "wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))


def faiss_module() -> Any:
    """The module `faiss`, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def mean_share(truth: np.ndarray, received: np.ndarray) -> float:
    """Mean share of each row of `truth` that is in the row of `received`."""
    shares = [
        np.isin(expected, row).mean()
        for expected, row in zip(truth, received, strict=True)
    ]
    return float(np.mean(shares))
