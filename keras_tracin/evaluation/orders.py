"""The order of examples by scores of any form, the highest first.

Synopsis:

    orders = read_orders({"loss": losses}, ids, needed=100, kind="kept")
    orders["loss"]                           # positions, [n]
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_tracin.data.ids import check_unique
from keras_tracin.data.lookup import locate
from keras_tracin.evaluation.curves import RANDOM
from keras_tracin.results import Attribution
from keras_tracin.results.of_examples import read_scores


def read_orders(
    scores: Any, ids: np.ndarray, needed: int, kind: str
) -> dict[str, np.ndarray]:
    """Positions of examples by each of the scores, the highest first.

    Equal scores keep reading order.

    Args:
        scores: by name, scores `[n]`, by id, or results.
        ids: ids of the examples in reading order, `[n]`.
        needed: number of examples that a result has to rank.
        kind: "removed" or "kept": what is done with the first of them.

    Raises:
        TypeError: if scores are of several queries.
        ValueError: if they are not of these examples, or not to be used so.
    """
    if not isinstance(scores, Mapping) or RANDOM in scores:
        received = list(scores) if isinstance(scores, Mapping) else scores
        raise ValueError(
            "`scores` should be a dict of scores by name, other than "
            f"'{RANDOM}', which is there always. Received: {received!r}."
        )
    return {
        name: _order(result, f"scores['{name}']", ids, needed, kind)
        for name, result in scores.items()
    }


def _order(
    result: Any, name: str, ids: np.ndarray, needed: int, kind: str
) -> np.ndarray:
    if isinstance(result, Attribution):
        raise TypeError(
            f"`{name}` should have one score for each example. Received: "
            f"{result!r}. Pass the mean over queries, "
            "`scores.scores.mean(axis=0)`, of which proponents are the "
            "highest."
        )
    if getattr(result, "is_ranked", False):
        return _of_ranked(result, name, ids, needed, kind)
    known, values = read_scores(result)
    known = ids if known is None else known
    if values.shape != ids.shape or known.shape != ids.shape:
        raise ValueError(
            f"`{name}` should be of the {len(ids):,} training examples. "
            f"Received: shape {values.shape}."
        )
    if np.isnan(values).any():
        raise ValueError(
            f"`{name}` should be numbers. Received "
            f"{np.isnan(values).sum():,} scores that are NaN."
        )
    in_order = np.empty(len(ids))
    in_order[_places(known, ids)] = values
    return np.argsort(-in_order, kind="stable")


def _of_ranked(
    result: Any, name: str, ids: np.ndarray, needed: int, kind: str
) -> np.ndarray:
    if kind == "kept" and hasattr(result, "issue_ids"):
        raise ValueError(
            "Label issues begin with what is to be dropped. Received "
            f"`{name}`: {result!r}. Pass `kt.select_examples(issues, 1.0)`, "
            "the least suspicious first."
        )
    if len(result.ids) < needed:
        raise ValueError(
            f"`{name}` should rank {needed:,} examples or more, for the "
            f"largest of the shares. Received: {result!r}."
        )
    return _places(result.ids, ids)


def _places(known: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Positions of examples in reading order, by their ids."""
    if np.array_equal(known, ids):
        return np.arange(len(ids))
    check_unique(ids, "train")
    check_unique(known, "scores")
    return np.array(locate(ids.tolist(), known, "train"))
