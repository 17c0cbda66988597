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

    search, entry = make(store, vectors, kind=None)
    store.finish(entry)
    search = load(store)
    positions, scores = search.best(vectors, k=10)     # [m, k] both
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_tracin.index.manifest import REMEDY
from keras_tracin.index.nearest import (
    COVERAGE,
    Nearest,
    by_faiss,
    faiss_module,
    make_cells,
    make_graph,
    mean_share,
    search_all,
    write_faiss,
)
from keras_tracin.index.shards import Shards
from keras_tracin.index.store import Store
from keras_tracin.results import TopK, TopKMerger
from keras_tracin.storage.arrays import load_array, write_array

KINDS = ("exact", "flat", "hnsw", "ivf")
NEAR = 64  # numbers of a short row, at first
_MOST_NEAR = 256
_FITTED_TO = 4096  # rows
_CANDIDATES = 4  # for each row that is asked for
_FEWEST_CANDIDATES = 100

# Which kind is the default: beyond these sizes the one before takes
# milliseconds.
_EXACT_BYTES = 8 * 2**20
_FLAT_ROWS = 200_000
_HNSW_ROWS = 2_000_000

Best = tuple[np.ndarray, np.ndarray]  # positions [m, k], scores [m, k]


@dataclasses.dataclass(frozen=True)
class Search:
    """Finds rows by inner product.

    Attributes:
        shards: the rows.
        kind: "exact" reads all rows; "flat" looks at all short rows, "hnsw"
            at those a graph leads to, "ivf" at those in the best cells.
        basis: `[width, r]`; short rows are the products of rows with it.
        nearest: search among the short rows.
    """

    shards: Shards
    kind: str
    basis: np.ndarray | None = None
    nearest: Nearest | None = None

    def best(self, vectors: np.ndarray, k: int) -> Best:
        """The `k` rows with the largest products, best first.

        Args:
            vectors: `[m, width]`.
            k: at most the number of rows.
        """
        count = max(_FEWEST_CANDIDATES, _CANDIDATES * k)
        if self.nearest is None or 2 * count > self.shards.size:
            top = scan(self.shards, vectors, k)
            return top.proponents.ids, top.proponents.scores
        candidates = self.nearest(vectors @ self.basis, count)
        ranked = [
            self._rank(vector, row, k)
            for vector, row in zip(vectors, candidates, strict=True)
        ]
        positions, scores = (
            np.stack(part) for part in zip(*ranked, strict=True)
        )
        return positions, scores

    def both(self, vectors: np.ndarray, k: int) -> tuple[Best, Best]:
        """The rows with the largest products, and those with the smallest."""
        positions, scores = self.best(np.concatenate([vectors, -vectors]), k)
        middle = len(vectors)
        return (
            (positions[:middle], scores[:middle]),
            (positions[middle:], -scores[middle:]),
        )

    def _rank(self, vector: np.ndarray, row: np.ndarray, k: int) -> Best:
        """The best `k` of some candidates, by their rows in full."""
        row = np.sort(row[row >= 0])
        if len(row) < k:  # the cells that were looked into hold fewer
            top = scan(self.shards, vector[np.newaxis], k)
            return top.proponents.ids[0], top.proponents.scores[0]
        scores = self.shards.read(row) @ vector
        order = np.argsort(-scores, kind="stable")[:k]
        return row[order], scores[order]


def scan(shards: Shards, vectors: np.ndarray, k: int) -> TopK:
    """The `TopK` of all rows, by position, read block after block."""
    merger = TopKMerger(np.arange(len(vectors)), k, shards.size)
    for start, rows in shards.blocks():
        scores = vectors @ rows.astype(np.float32, copy=False).T
        merger.add(np.arange(start, start + len(rows)), scores)
    return merger.result()


def make(
    store: Store, vectors: np.ndarray, kind: str | None = None
) -> tuple[Search, dict[str, Any]]:
    """Makes the search among all rows of a store.

    Args:
        store: the files of the index.
        vectors: some queries `[m, width]`, by which sizes are chosen.
        kind: one of `KINDS`; by default chosen by size.

    Returns:
        The search, and what `store.finish` notes of it.
    """
    shards = store.shards
    if kind is None:
        kind = _kind_for(shards)
    if kind == "exact":
        return Search(shards, kind), {"kind": kind, "files": {}}
    k = min(10, shards.size)
    for dim in (NEAR, 2 * NEAR, _MOST_NEAR):
        basis = _basis(shards, dim)
        truth = scan(shards, vectors, k).proponents.ids
        near = _short_rows(shards, basis)
        count = min(max(_FEWEST_CANDIDATES, _CANDIDATES * k), shards.size)
        short = vectors @ basis
        flat = search_all(near)(short, count)
        if (
            basis.shape[1] == shards.width
            or mean_share(truth, flat) >= COVERAGE
        ):
            break
    files = {"basis": _write(store, "basis", basis)}
    if kind == "flat":
        files["near"] = _write(store, "near", near)
        nearest = search_all(near)
    else:
        index = (
            make_graph(near)
            if kind == "hnsw"
            else make_cells(near, short, flat)
        )
        nearest = by_faiss(index)
        files["faiss"] = store.write_search(
            "faiss",
            lambda path: write_faiss(path, index),
        )
    return (
        Search(shards, kind, basis, nearest),
        {"kind": kind, "dim": basis.shape[1], "files": files},
    )


def load(store: Store) -> Search:
    """The search that `make` has written for the rows of a store."""
    shards, kind = store.shards, store.manifest.get("search")["kind"]
    if kind == "exact":
        return Search(shards, kind)
    basis = _read(store, "basis")
    if kind == "flat":
        return Search(shards, kind, basis, search_all(_read(store, "near")))
    if faiss_module() is None:
        near = _short_rows(shards, basis)
        return Search(shards, "flat", basis, search_all(near))
    index = faiss_module().read_index(str(store.search_path("faiss")))
    return Search(shards, kind, basis, by_faiss(index))


def check_kind(kind: str | None) -> None:
    """Raises an error unless there is such a kind of search here.

    Raises:
        ValueError: if there is no such kind.
        ImportError: if it needs faiss, and that is not installed.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(
            f"`search` should be one of {list(KINDS)}, or None to choose by "
            f"size. Received: {kind!r}."
        )
    if kind in ("hnsw", "ivf") and faiss_module() is None:
        raise ImportError(
            f"search={kind!r} needs faiss, which is not installed: "
            "`pip install keras_tracin[index]`. search='flat' does without."
        )


def _kind_for(shards: Shards) -> str:
    if shards.size * shards.width * 4 <= _EXACT_BYTES:
        return "exact"
    if shards.size <= _FLAT_ROWS or faiss_module() is None:
        return "flat"
    return "hnsw" if shards.size <= _HNSW_ROWS else "ivf"


def _basis(shards: Shards, dim: int) -> np.ndarray:
    """Directions `[width, dim]` in which a sample of rows is longest.

    The first right singular vectors, by subspace iteration (Halko, Martinsson
    & Tropp 2011).
    """
    if shards.width <= 2 * dim:
        return np.eye(shards.width, dtype=np.float32)
    rng = np.random.default_rng(0)
    count = min(_FITTED_TO, shards.size)
    picked = rng.choice(shards.size, count, replace=False)
    sample = np.concatenate(
        [
            rows[np.sort(picked[(picked >= start) & (picked < stop)]) - start]
            for start, rows in shards.blocks()
            for stop in [start + len(rows)]
        ]
    ).astype(np.float32, copy=False)
    space = rng.normal(size=(shards.width, dim + 32)).astype(np.float32)
    for _ in range(3):
        space, _ = np.linalg.qr(sample.T @ (sample @ space))
    _, _, right = np.linalg.svd(sample @ space, full_matrices=False)
    return np.ascontiguousarray((space @ right.T)[:, :dim])


def _short_rows(shards: Shards, basis: np.ndarray) -> np.ndarray:
    """The short rows `[n, r]`."""
    near = np.empty([shards.size, basis.shape[1]], np.float32)
    for start, rows in shards.blocks():
        rows = rows.astype(np.float32, copy=False)
        near[start : start + len(rows)] = rows @ basis
    return near


def _write(store: Store, name: str, array: np.ndarray) -> dict[str, Any]:
    return store.write_search(name, lambda path: write_array(path, array))


def _read(store: Store, name: str) -> np.ndarray:
    return load_array(store.search_path(name), REMEDY)
