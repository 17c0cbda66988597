"""Ids of examples: whole numbers or text, which name one example each.

Synopsis:

    read_ids(np.array([3, 1]), "among")      # [3, 1]
    find_repeated(np.array([3, 1, 3]))       # [3]
    check_unique(ids, "train")               # ValueError, naming those twice
    values[Reading(ids, "train").places(again)]    # in the order of `again`
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def read_ids(ids: Any, name: str) -> list[Any]:
    """Ids that a user names, as Python has them.

    Args:
        ids: a list, set or array of one dimension.
        name: name of the argument, for errors.

    Raises:
        ValueError: if they are a mask of booleans, or nothing of the kind.
    """
    known = None
    if isinstance(ids, Iterable) and not isinstance(ids, str | bytes | Mapping):
        known = [_plain(value) for value in ids]
    if known and all(isinstance(value, bool) for value in known):
        raise ValueError(
            f"`{name}` should hold ids of training examples. Received a mask "
            f"of {len(known):,} booleans. Pass the ids where it is true: "
            "`ids[mask]`, or `np.flatnonzero(mask)` where ids are positions."
        )
    if known is None or not all(
        isinstance(value, int | float | str | bytes) for value in known
    ):
        raise ValueError(
            f"`{name}` should hold ids of training examples, in a list or an "
            f"array of one dimension. Received: {ids!r}."
        )
    return known


def find_repeated(ids: np.ndarray) -> list[Any]:
    """The ids that occur more than once."""
    values, counts = np.unique(np.asarray(ids), return_counts=True)
    return values[counts > 1].tolist()


def check_unique(ids: np.ndarray, name: str) -> None:
    """Raises ValueError where ids that are to name examples do not.

    Args:
        ids: `[n]`.
        name: name of the data, for errors.
    """
    twice = find_repeated(ids)
    if twice:
        raise ValueError(
            f"Each example of `{name}` should have an id of its own where ids "
            f"select examples. Received {twice[:5]} more than once. Give "
            "others by `kt.with_ids(data, ids)`, or leave out `.repeat()`."
        )


class Reading:
    """The order in which examples were read, for readings in another.

    Data that shuffles gives another order at each reading.

    Args:
        ids: their ids, `[n]`.
        name: name of the data, for errors.
    """

    def __init__(self, ids: np.ndarray, name: str):
        self._ids, self._name = np.asarray(ids), name

    def places(self, ids: np.ndarray) -> np.ndarray:
        """Places of examples in this reading.

        Args:
            ids: ids of all its examples, or of some, as they were read again.

        Raises:
            ValueError: if the order differs and ids repeat, or one is not
                there.
        """
        if np.array_equal(self._ids, ids):
            return np.arange(len(self._ids))
        known = self._ids[self._order]
        at = np.searchsorted(known, ids)
        places = self._order[np.minimum(at, len(known) - 1)]
        others = np.asarray(ids)[self._ids[places] != ids]
        if len(others):
            raise ValueError(
                f"`{self._name}` gave other examples when it was read again. "
                f"Received the ids {others[:5].tolist()} at one reading only. "
                "Expected the same examples at each, in any order: take out "
                "what chooses among them at random."
            )
        return places

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """Places in the order of the ids, which may not repeat."""
        check_unique(self._ids, self._name)
        return np.argsort(self._ids, kind="stable")


def check_text(value: Any, where: str) -> None:
    """Raises ValueError for bytes that are no text.

    Results and files hold ids as text.
    """
    try:
        if isinstance(value, bytes):
            value.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(
            f"Ids should be whole numbers or text in UTF-8. Received {value!r} "
            f"for {where}. Make text of them first: `value.hex()`, "
            "`value.decode('latin-1')`, or `tf.io.encode_base64` in a map."
        ) from None


def _plain(value: Any) -> Any:
    """An id as Python has it, as in `ids.tolist()`."""
    if hasattr(value, "numpy"):  # an eager tensor
        value = value.numpy()
    return value.item() if isinstance(value, np.generic) else value
