"""How much of the truth a search finds.

Synopsis:

    measured(store, search, vectors, ids)
    # {"k": 10, "queries": 20, "proponents": 0.94, "opponents": 0.93}
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_tracin.index.search import Search, scan
from keras_tracin.index.store import Store
from keras_tracin.results import TopKMerger

_K = 10


def measured(
    store: Store, search: Search, vectors: np.ndarray, ids: np.ndarray
) -> dict[str, Any]:
    """The share of the strongest examples, by exact scores, that are found.

    Args:
        store: the rows, with the exact scores of the queries where they have
            any: rows of sketched inverses have none but their own.
        search: what finds them.
        vectors: the queries' vectors `[m, width]`.
        ids: their ids, as training examples. Each is left out of its own
            lists: it would be found first, and flatter the search.
    """
    k = max(1, min(_K, store.size - 1))
    wanted = min(k + 1, store.size)
    if store.has("exact"):
        merger = TopKMerger(ids, wanted, store.size)
        for start, scores in store.blocks("exact"):
            merger.add(np.arange(start, start + len(scores)), scores.T)
        top = merger.result()
    else:
        top = scan(store, vectors, wanted)
    names = store.ids()
    shares = {}
    for side, (positions, _) in zip(
        ("proponents", "opponents"), search.both(vectors, wanted), strict=True
    ):
        truth = names[getattr(top, side).ids]
        shares[side] = _share(truth, names[positions], ids, k)
    return {"k": k, "queries": len(ids), **shares}


def _share(
    truth: np.ndarray, found: np.ndarray, own: np.ndarray, k: int
) -> float:
    hits = [
        np.isin(a[a != name][:k], b[b != name][:k]).mean()
        for a, b, name in zip(truth, found, own, strict=True)
    ]
    return float(np.mean(hits))
