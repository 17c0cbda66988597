"""Ids of examples: whole numbers or text, which name one example each.

Synopsis:

    read_ids(np.array([3, 1]), "among")      # [3, 1]
    find_repeated(np.array([3, 1, 3]))       # [3]
    check_unique(ids, "train")               # ValueError, naming those twice
"""

from __future__ import annotations

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
