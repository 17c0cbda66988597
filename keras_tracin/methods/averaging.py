"""The mean of the scores of several methods.

Synopsis:

    members = check_members([first, second])
    scores = (member.influence(test) for member in members)
    average(scores, query_ids, scale="query")     # [m, n]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_tracin.methods.attributor import Attributor
from keras_tracin.results import Attribution

_CALLS = (
    "influence",
    "top_k",
    "self_influence",
    "plan",
    "among",
    "describe",
)


def check_members(attributors: Any) -> list[Attributor]:
    """The members as a list, if they are methods."""
    if not isinstance(attributors, Sequence):
        raise TypeError(
            "`attributors` should be a list of methods. Received: "
            f"{attributors!r}."
        )
    for member in attributors:
        missing = [
            name for name in _CALLS if not callable(getattr(member, name, None))
        ]
        if missing or isinstance(member, type):
            what = f"has no {missing[0]!r}" if missing else "is a class"
            raise TypeError(
                "`attributors` should be methods such as `kt.TracIn`. Received "
                f"{member!r}, which {what}."
            )
    if not attributors:
        raise ValueError(
            "`attributors` should hold one method or more. Received none."
        )
    return list(attributors)


def unit_of(member: Attributor) -> str:
    """The class and options that give a member's scores their unit."""
    return getattr(member, "unit", type(member).__name__)


def common_size(members: Sequence[Attributor]) -> int | None:
    """The number of training examples, where a member tells."""
    sizes = [getattr(member, "num_train", None) for member in members]
    known = sorted({size for size in sizes if size is not None})
    if len(known) > 1:
        raise ValueError(
            "The members of an ensemble should have the same training "
            f"examples. Received members with {known} of them."
        )
    return known[0] if known else None


def _check_ids(role: str, expected: np.ndarray, received: np.ndarray) -> None:
    """Raises ValueError unless a member has the expected ids."""
    if not np.array_equal(expected, received):
        raise ValueError(
            f"The members of an ensemble should have the same {role} examples, "
            f"in the same order. Received {len(received):,} ids, "
            f"{received[:5].tolist()}..., expected {len(expected):,}, "
            f"{expected[:5].tolist()}... Make the members with the same data, "
            "and take out what changes its order."
        )


def _copy(scores: np.ndarray) -> np.ndarray:
    """The scores as they are, to be added to."""
    return np.array(scores)  # which may be mapped from a file


def _divide_by_deviation(scores: np.ndarray) -> np.ndarray:
    """Each row divided by its standard deviation; 0 where it is constant."""
    scaled = np.zeros_like(scores)
    for row, result in zip(scores, scaled, strict=True):
        if np.ptp(row) > 0:
            result[:] = row / row.std(dtype=np.float64)
    return scaled


def average(
    members: Iterable[Attribution], query_ids: np.ndarray, scale: str | None
) -> np.ndarray:
    """The mean of members' scores, `[m, n]`.

    Without a scale it is that of `Attribution.mean`, to the bit.

    Args:
        members: their scores of the same queries, one member after another.
        query_ids: ids of the queries, `[m]`.
        scale: None, or "query" to divide each row by its standard deviation.

    Raises:
        ValueError: if members have other ids.
    """
    rescale = _copy if scale is None else _divide_by_deviation
    total, train_ids, count = np.zeros(0), np.zeros(0), 0
    for count, member in enumerate(members, 1):
        _check_ids("query", query_ids, member.query_ids)
        if count == 1:
            total, train_ids = rescale(member.scores), member.train_ids
            continue
        _check_ids("training", train_ids, member.train_ids)
        dtype = np.result_type(total, member.scores)
        total = total.astype(dtype, copy=False)
        total += member.scores if scale is None else rescale(member.scores)
    total /= count
    return total
