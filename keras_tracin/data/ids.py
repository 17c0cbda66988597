"""Ids of examples: whole numbers or text, which name one example each.

Synopsis:

    find_repeated(np.array([3, 1, 3]))       # [3]
    check_unique(ids, "train")               # ValueError, naming those twice
"""

from __future__ import annotations

from typing import Any

import numpy as np


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
