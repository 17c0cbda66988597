"""Rows as they are kept: in float32, in float16, or in int8 with a scale each.

What rounding changes is measured on the queries that recall is measured on:
the products of rows as they were made are kept beside those that are rounded.

Synopsis:

    arrays = rounded(rows, "int8")      # {"rows": int8, "scales": float32}
    Kept("int8", vectors).arrays({"rows": rows}, ids)   # those of a shard
    measure_rounding(store.shards, vectors, ids)
    # {"proponents": 0.99, "opponents": 0.98, "correlation": 0.9999}
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_tracin.index.recall import mean_shares
from keras_tracin.index.shards import Shards
from keras_tracin.results import TopKMerger

DTYPES = ("float32", "float16", "int8")
PRODUCTS = "unrounded"  # kind of array: products `[n, m]` of rows as made

_LARGEST = 127  # of an int8, of either sign
_K = 10


@dataclasses.dataclass(frozen=True)
class Kept:
    """The form in which rows are kept.

    Attributes:
        dtype: their dtype.
        vectors: those of the queries whose products with rows as they were
            made are kept, `[m, width]`, where rows are rounded.
    """

    dtype: str
    vectors: np.ndarray | None = None

    def arrays(
        self, made: dict[str, np.ndarray], ids: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The arrays of a shard as they are kept, by kind.

        Args:
            made: "rows" as they were made, and others.
            ids: ids of the examples.

        Raises:
            ValueError: if a row does not fit the dtype.
        """
        rows = made["rows"]
        products = {}
        if self.vectors is not None:
            products = {PRODUCTS: rows @ self.vectors.T}
        return {**made, **rounded(rows, self.dtype), **products, "ids": ids}

    def bytes_of_row(self, width: int) -> int:
        """Bytes of a row on the disk, with what is kept beside it.

        Args:
            width: number of its entries.
        """
        beside = 0 if self.vectors is None else len(self.vectors)
        beside += self.dtype == "int8"  # its scale
        return width * np.dtype(self.dtype).itemsize + 4 * beside


def check_dtype(dtype: str) -> None:
    """Raises ValueError unless rows can be kept in a dtype."""
    if dtype not in DTYPES:
        *first, last = map(repr, DTYPES)
        raise ValueError(
            f"`dtype` should be {', '.join(first)} or {last}. Received: "
            f"{dtype!r}."
        )


def rounded(rows: np.ndarray, dtype: str) -> dict[str, np.ndarray]:
    """Rows `[n, width]` as they are kept, and their "scales" if they have any.

    Raises:
        ValueError: if a row does not fit the dtype.
    """
    if dtype == "int8":
        scales = np.abs(rows).max(axis=1, initial=0.0) / _LARGEST
        scales = np.where(scales > 0, scales, 1.0).astype(np.float32)
        whole = np.rint(rows / scales[:, np.newaxis])
        whole = np.clip(whole, -_LARGEST, _LARGEST).astype(np.int8)
        return {"rows": whole, "scales": scales}
    largest = np.abs(rows).max(initial=0.0)
    if dtype == "float16" and largest > np.finfo(np.float16).max:
        raise ValueError(
            "A row does not fit float16: its largest number is "
            f"{largest:.3g}. Build with dtype='float32', or with 'int8', which "
            "has a scale for each row."
        )
    return {"rows": rows.astype(dtype, copy=False)}


def measure_rounding(
    shards: Shards, vectors: np.ndarray, ids: np.ndarray
) -> dict[str, Any] | None:
    """What rounding changes: None where rows are as they were made.

    Args:
        shards: the rows, with the products of rows as they were made.
        vectors: the queries' vectors `[m, width]`.
        ids: the queries' ids, as training examples, left out of their own
            lists.

    Returns:
        The shares of the strongest "proponents" and "opponents" by rows as
        they were made that are the strongest by the rounded ones too; and the
        mean "correlation" of a query's products.
    """
    if not shards.has(PRODUCTS):
        return None
    k = max(1, min(_K, shards.size - 1))
    count = min(k + 1, shards.size)
    mergers = [
        TopKMerger(np.arange(len(vectors)), count, shards.size)
        for _ in range(2)
    ]
    sums = np.zeros([5, len(vectors)])
    for (start, rows), (_, products) in zip(
        shards.blocks(), shards.blocks(PRODUCTS), strict=True
    ):
        places = np.arange(start, start + len(rows))
        both = products.T, vectors @ rows.astype(np.float32, copy=False).T
        for merger, scores in zip(mergers, both, strict=True):
            merger.add(places, scores)
        a, b = (scores.astype(np.float64) for scores in both)
        sums += [x.sum(axis=1) for x in (a, b, a * a, b * b, a * b)]
    truth, received = (merger.result() for merger in mergers)
    names = shards.ids()
    sides = ("proponents", "opponents")
    shares = {
        side: mean_shares(
            names[getattr(truth, side).ids],
            names[getattr(received, side).ids],
            ids,
            k,
        )
        for side in sides
    }
    return {**shares, "correlation": _correlation(sums / shards.size)}


def _correlation(means: np.ndarray) -> float:
    """The mean of the queries' correlations, by means of powers."""
    a, b, aa, bb, ab = means
    variances = np.maximum((aa - a * a) * (bb - b * b), 1e-60)
    return float(np.mean((ab - a * b) / np.sqrt(variances)))
