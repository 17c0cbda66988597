"""The rows with the largest inner products, found without reading them all.

Rows are long, and most of their length lies in few directions: a rotation
(from a sample's singular vectors) keeps 64 numbers of each, or as many more as
the sample's own queries need. These short rows are held in memory and searched
first; the best candidates are read from the disk and scored in full. So the
short rows only have to bring the true ones among the candidates.

Short rows are searched by inner product itself, not by distance after adding a
coordinate that makes all lengths equal: lengths of gradients differ a
thousandfold, which leaves nothing of the other coordinates, and graphs and
cells built on such points find less (see docs/projections.md).

Synopsis:

    search, files = make(store, kind=None, vectors=queries)
    search = load(store)
    positions, scores = search.best(vectors, k=10)     # [m, k] both
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.index.store import REMEDY, Store
from keras_tracin.results.attribution import TopKMerger
from keras_tracin.storage.arrays import load_array, write_array

KINDS = ("exact", "flat", "hnsw", "ivf")
NEAR = 64  # numbers of a short row, at first
_MOST_NEAR = 256
_FITTED_TO = 4096  # rows
_COVERAGE = 0.99  # of the best rows that are to be among the candidates
_CANDIDATES = 4  # for each row that is wanted
_FEWEST_CANDIDATES = 100

# Which kind is the default: beyond these sizes the one before takes
# milliseconds.
_EXACT_BYTES = 8 * 2**20
_FLAT_ROWS = 200_000
_HNSW_ROWS = 2_000_000

_LINKS = 32  # of each row in a graph
_TRIED = 200  # rows that a search in a graph keeps in sight, at least
_FEW = 8  # vectors for which one thread is enough
_PER_CELL = 64  # times the number of cells: rows that their centres come from

Found = tuple[np.ndarray, np.ndarray]  # positions [m, k], scores [m, k]
Nearest = Callable[[np.ndarray, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Search:
    """Finds rows by inner product.

    Attributes:
        store: the rows.
        kind: how: "exact" reads all of them; "flat" looks at all short rows,
            "hnsw" at those a graph leads to, "ivf" at those in the best cells.
        basis: `[width, r]`, what short rows are products with.
        nearest: `(queries [m, r], count) -> positions [m, count]`; -1 where
            it found fewer.
    """

    store: Store
    kind: str
    basis: np.ndarray | None = None
    nearest: Nearest | None = None

    def best(self, vectors: np.ndarray, k: int) -> Found:
        """The `k` rows with the largest products, best first.

        Args:
            vectors: `[m, width]`.
            k: at most the number of rows.
        """
        count = max(_FEWEST_CANDIDATES, _CANDIDATES * k)
        if self.nearest is None or 2 * count > self.store.size:
            top = scan(self.store, vectors, k)
            return top.proponents.ids, top.proponents.scores
        candidates = self.nearest(vectors @ self.basis, count)
        found = [
            self._scored(vector, row, k)
            for vector, row in zip(vectors, candidates, strict=True)
        ]
        positions, scores = (
            np.stack(part) for part in zip(*found, strict=True)
        )
        return positions, scores

    def both(self, vectors: np.ndarray, k: int) -> tuple[Found, Found]:
        """The same for the largest products and for the smallest."""
        positions, scores = self.best(np.concatenate([vectors, -vectors]), k)
        middle = len(vectors)
        return (
            (positions[:middle], scores[:middle]),
            (positions[middle:], -scores[middle:]),
        )

    def _scored(self, vector: np.ndarray, row: np.ndarray, k: int) -> Found:
        """The best `k` of some candidates, by their rows in full."""
        row = np.sort(row[row >= 0])
        if len(row) < k:  # the cells that were looked into hold fewer
            top = scan(self.store, vector[np.newaxis], k)
            return top.proponents.ids[0], top.proponents.scores[0]
        scores = self.store.rows(row) @ vector
        order = np.argsort(-scores, kind="stable")[:k]
        return row[order], scores[order]


def scan(store: Store, vectors: np.ndarray, k: int):
    """The `TopK` of all rows, by position, read block after block."""
    merger = TopKMerger(np.arange(len(vectors)), k, store.size)
    for start, rows in store.blocks():
        scores = vectors @ rows.astype(np.float32, copy=False).T
        merger.add(np.arange(start, start + len(rows)), scores)
    return merger.result()


def make(
    store: Store, vectors: np.ndarray, kind: str | None = None
) -> tuple[Search, dict[str, Any]]:
    """Makes what searches all rows of a store.

    Args:
        store: the rows.
        vectors: some queries `[m, width]`, by which sizes are chosen.
        kind: one of `KINDS`; by default chosen by size.

    Returns:
        The search, and what is to be said of it to `store.finish`.
    """
    if kind is None:
        kind = _kind_for(store)
    if kind == "exact":
        return Search(store, kind), {"kind": kind, "files": {}}
    k = min(10, store.size)
    for dim in (NEAR, 2 * NEAR, _MOST_NEAR):
        basis = _basis(store, dim)
        truth = scan(store, vectors, k).proponents.ids
        near = _near(store, basis)
        count = min(max(_FEWEST_CANDIDATES, _CANDIDATES * k), store.size)
        short = vectors @ basis
        flat = _flat(near)(short, count)
        if basis.shape[1] == store.width or _share(truth, flat) >= _COVERAGE:
            break
    files = {"basis": _written(store, "basis", basis)}
    if kind == "flat":
        files["near"] = _written(store, "near", near)
        nearest = _flat(near)
    else:
        index = _graph(near) if kind == "hnsw" else _cells(near, short, flat)
        nearest = _by_faiss(index)
        files["faiss"] = store.write_search(
            "faiss", lambda path: _faiss().write_index(index, str(path))
        )
    return (
        Search(store, kind, basis, nearest),
        {"kind": kind, "dim": basis.shape[1], "files": files},
    )


def load(store: Store) -> Search:
    """What `make` has written for these rows."""
    kind = store.noted("search")["kind"]
    if kind == "exact":
        return Search(store, kind)
    basis = _read(store, "basis")
    if kind == "flat":
        return Search(store, kind, basis, _flat(_read(store, "near")))
    if _faiss() is None:
        return Search(store, "flat", basis, _flat(_near(store, basis)))
    index = _faiss().read_index(str(store.search_path("faiss")))
    return Search(store, kind, basis, _by_faiss(index))


def check_kind(kind: str | None) -> None:
    """Raises an error unless rows can be searched so.

    Raises:
        ValueError: if there is no such kind.
        ImportError: if it needs faiss, and that is not installed.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"`search` should be one of {list(KINDS)}, or None to choose by "
            f"size. Received: {kind!r}."
        )
    if kind in ("hnsw", "ivf") and _faiss() is None:
        raise ImportError(
            f"search={kind!r} needs faiss, which is not installed: "
            "`pip install keras_tracin[index]`. search='flat' does without."
        )


def _kind_for(store: Store) -> str:
    if store.size * store.width * 4 <= _EXACT_BYTES:
        return "exact"
    if store.size <= _FLAT_ROWS or _faiss() is None:
        return "flat"
    return "hnsw" if store.size <= _HNSW_ROWS else "ivf"


def _basis(store: Store, dim: int) -> np.ndarray:
    """`[width, dim]`, what a sample of rows has most of its length in.

    The first right singular vectors, by subspace iteration (Halko, Martinsson
    & Tropp 2011).
    """
    if store.width <= 2 * dim:
        return np.eye(store.width, dtype=np.float32)
    rng = np.random.default_rng(0)
    count = min(_FITTED_TO, store.size)
    chosen = rng.choice(store.size, count, replace=False)
    sample = np.concatenate(
        [
            rows[np.sort(chosen[(chosen >= start) & (chosen < stop)]) - start]
            for start, rows in store.blocks()
            for stop in [start + len(rows)]
        ]
    ).astype(np.float32, copy=False)
    found = rng.normal(size=(store.width, dim + 32)).astype(np.float32)
    for _ in range(3):
        found, _ = np.linalg.qr(sample.T @ (sample @ found))
    _, _, right = np.linalg.svd(sample @ found, full_matrices=False)
    return np.ascontiguousarray((found @ right.T)[:, :dim])


def _near(store: Store, basis: np.ndarray) -> np.ndarray:
    """The short rows `[n, r]`."""
    near = np.empty([store.size, basis.shape[1]], np.float32)
    for start, rows in store.blocks():
        rows = rows.astype(np.float32, copy=False)
        near[start : start + len(rows)] = rows @ basis
    return near


def _share(truth: np.ndarray, found: np.ndarray) -> float:
    """The share of each row of `truth` that is in the same row of `found`."""
    hits = [
        np.isin(one, other).mean()
        for one, other in zip(truth, found, strict=True)
    ]
    return float(np.mean(hits))


def _flat(near: np.ndarray) -> Nearest:
    """Looks at all short rows: by faiss, or else by TensorFlow."""
    faiss = _faiss()
    if faiss is None:
        return _by_tensorflow(near)
    index = faiss.IndexFlatIP(near.shape[1])
    index.add(near)
    return _by_faiss(index)


def _by_tensorflow(near: np.ndarray) -> Nearest:
    held = tf.constant(near)

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, near.shape[1]], tf.float32),
            tf.TensorSpec([], tf.int32),
        ]
    )
    def search(queries, count):
        scores = tf.matmul(queries, held, transpose_b=True)
        return tf.math.top_k(scores, count).indices

    return lambda queries, count: search(queries, np.int32(count)).numpy()


def _by_faiss(index) -> Nearest:
    faiss = _faiss()

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


def _graph(near: np.ndarray):
    """A navigable graph (Malkov & Yashunin 2018)."""
    faiss = _faiss()
    index = faiss.IndexHNSWFlat(
        near.shape[1], _LINKS, faiss.METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = 80
    index.hnsw.efSearch = _TRIED
    index.add(near)
    return index


def _cells(near: np.ndarray, queries: np.ndarray, truth: np.ndarray):
    """Cells around centres, so many of which are searched as it takes.

    Args:
        near: the short rows.
        queries: short vectors, to try it with.
        truth: for each, the positions of the best candidates.
    """
    faiss = _faiss()
    cells = max(1, int(math.sqrt(len(near))))
    quantizer = faiss.IndexFlatIP(near.shape[1])
    index = faiss.IndexIVFFlat(
        quantizer, near.shape[1], cells, faiss.METRIC_INNER_PRODUCT
    )
    index.train(near[:: max(1, len(near) // (_PER_CELL * cells))])
    index.add(near)
    index.nprobe = max(1, cells // 64)
    while index.nprobe < cells:
        _, found = index.search(queries, truth.shape[1])
        if _share(truth[:, :10], found) >= _COVERAGE:
            break
        index.nprobe = min(cells, 2 * index.nprobe)
    return index


@functools.cache
def _faiss():
    """The module, or None where it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    return faiss


def _written(store: Store, name: str, array: np.ndarray) -> dict[str, Any]:
    return store.write_search(name, lambda path: write_array(path, array))


def _read(store: Store, name: str) -> np.ndarray:
    return load_array(store.search_path(name), REMEDY)
