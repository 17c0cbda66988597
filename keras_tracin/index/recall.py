"""Recall of a search among rows, against exact scores.

Synopsis:

    measure_recall(store.shards, search, vectors, ids)
    # {"k": 10, "queries": 20, "proponents": 0.94, "opponents": 0.93}
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_tracin.index.search import Search, scan
from keras_tracin.index.shards import Shards
from keras_tracin.results import TopKMerger

_K = 10


def measure_recall(
    shards: Shards, search: Search, vectors: np.ndarray, ids: np.ndarray
) -> dict[str, Any]:
    """The share of the strongest examples, by exact scores, that are found.

    Args:
        shards: the rows, with the exact scores of the queries where those
            differ from products of rows and vectors.
        search: the search among them.
        vectors: the queries' vectors `[m, width]`.
        ids: the queries' ids, as training examples. Each is left out of its
            own lists: it would be found first, and flatter the search.

    Returns:
        "k", the number of "queries", and the shares of "proponents" and
        "opponents".
    """
    k = max(1, min(_K, shards.size - 1))
    count = min(k + 1, shards.size)
    if shards.has("exact"):
        merger = TopKMerger(ids, count, shards.size)
        for start, scores in shards.blocks("exact"):
            merger.add(np.arange(start, start + len(scores)), scores.T)
        top = merger.result()
    else:
        top = scan(shards, vectors, count)
    names = shards.ids()
    shares = {}
    for side, (positions, _) in zip(
        ("proponents", "opponents"), search.both(vectors, count), strict=True
    ):
        truth = names[getattr(top, side).ids]
        shares[side] = mean_shares(truth, names[positions], ids, k)
    return {"k": k, "queries": len(ids), **shares}


def mean_shares(
    truth: np.ndarray, received: np.ndarray, own: np.ndarray, k: int
) -> float:
    """Mean share of the `k` first of each list that another one has too.

    Args:
        truth: ids `[m, k + 1]`, best first.
        received: ids to be compared.
        own: an id for each list that counts in neither.
        k: number of ids that count.
    """
    shares = [
        np.isin(a[a != name][:k], b[b != name][:k]).mean()
        for a, b, name in zip(truth, received, own, strict=True)
    ]
    return float(np.mean(shares))
