"""Checks and looks up values of examples to draw."""

from __future__ import annotations

from typing import Any

import numpy as np


def column(name: str, values: Any, expected: int) -> np.ndarray | None:
    """Values as an array; refuses another length than expected."""
    if values is None:
        return None
    if len(values) != expected:
        raise ValueError(
            f"`{name}` should have length {expected}. Received: length "
            f"{len(values)}."
        )
    return np.asarray(values)


def find_positions(
    ids: np.ndarray, train_ids: np.ndarray | None, n: int, name: str
) -> np.ndarray:
    """Looks up the positions `[m, k]` of `ids [m, k]`.

    Args:
        ids: ids of training examples.
        train_ids: ids of all training examples, `[n]`; None if ids are
            positions.
        n: number of training examples.
        name: name of the argument with the training examples, for errors.

    Raises:
        ValueError: if an id is not among `train_ids`.
    """
    all_ids = np.arange(n) if train_ids is None else train_ids
    order = np.argsort(all_ids, kind="stable")
    places = np.searchsorted(all_ids, ids, sorter=order)
    positions = order[np.minimum(places, n - 1)]
    unknown = ids[all_ids[positions] != ids].tolist()
    if unknown:
        raise ValueError(
            f"`top` names the training id {unknown[0]!r}, which is not among "
            f"the {n} of `{name}`. Pass all of them, and their ids as "
            "`train_ids` if `with_ids` attached them."
        )
    return positions
