"""What is drawn of each example: as many values as there are examples."""

from __future__ import annotations

from typing import Any

import numpy as np


def column(name: str, values: Any, expected: int) -> np.ndarray | None:
    """Values as an array with one row for each of the expected examples."""
    if values is None:
        return None
    if len(values) != expected:
        raise ValueError(
            f"`{name}` should have length {expected}. Received: length "
            f"{len(values)}."
        )
    return np.asarray(values)


def positions_of(
    ids: np.ndarray, train_ids: np.ndarray | None, n: int, name: str
) -> np.ndarray:
    """Where among the `n` training examples each of `ids [m, k]` is.

    Args:
        ids: of training examples.
        train_ids: `[n]`, or None where ids are positions.
        n: how many there are.
        name: of the argument that holds them.

    Raises:
        ValueError: if an id is not among them.
    """
    known = np.arange(n) if train_ids is None else train_ids
    order = np.argsort(known, kind="stable")
    places = np.searchsorted(known, ids, sorter=order)
    positions = order[np.minimum(places, n - 1)]
    unknown = ids[known[positions] != ids].tolist()
    if unknown:
        raise ValueError(
            f"`top` names the training id {unknown[0]!r}, which is not among "
            f"the {n} of `{name}`. Pass all of them, and their ids as "
            "`train_ids` if `with_ids` attached them."
        )
    return positions
