"""Tables of pandas, which is not imported here: their arrays and their ids.

Synopsis:

    ids = read_index((frame, labels), "train")    # frame.index, or None
    array = array_of(frame["age"])                # [n, 1], as `fit` makes it
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import tensorflow as tf


def is_pandas(leaf: Any) -> bool:
    """Whether it is a DataFrame or a Series."""
    return _is_a(leaf, "DataFrame") or _is_a(leaf, "Series")


def column_names(x: Any) -> list[str] | None:
    """The names of a table's columns; None for anything else."""
    return list(map(str, x.columns)) if _is_a(x, "DataFrame") else None


def as_columns(x: Any) -> Any:
    """Inputs whose Series are columns `[n, 1]`, as `fit` makes them.

    Args:
        x: arrays, tables and structures of them.
    """
    return tf.nest.map_structure(
        lambda leaf: leaf.to_frame() if _is_a(leaf, "Series") else leaf, x
    )


def read_index(data: Any, name: str) -> np.ndarray | None:
    """The ids of rows, as the index of their tables names them.

    A warning says where numbers are ids that are no positions.

    Args:
        data: arrays, tables and structures of them.
        name: name of the data, for warnings.

    Returns:
        Whole numbers or text `[n]`; None where rows have their positions as
        ids, since there is no table, or none that tells rows apart.
    """
    indices = [leaf.index for leaf in tf.nest.flatten(data) if is_pandas(leaf)]
    if not indices:
        return None
    first, *others = indices
    if not all(first.equals(other) for other in others):
        _warn(
            f"The tables of `{name}` have different indices. Their rows belong "
            "together by position, as in `fit`, so positions are their ids."
        )
        return None
    if not first.is_unique:
        _warn(
            f"The index of `{name}` names several rows alike, so positions are "
            "their ids. For ids of your own, give the table an index that "
            "tells rows apart."
        )
        return None
    values = first.to_numpy()
    if values.dtype.kind not in "iu":
        return np.array([str(value) for value in first])
    if np.array_equal(values, np.arange(len(values))):
        return None
    _warn(
        f"Ids of `{name}` are the numbers of its index, {values[:3].tolist()} "
        "at first, not positions: look rows up by `.loc`. For positions, pass "
        "the table after `.reset_index(drop=True)`."
    )
    return values


def _warn(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)


_warned: set[str] = set()


def _is_a(leaf: Any, kind: str) -> bool:
    return any(
        parent.__name__ == kind and parent.__module__.split(".")[0] == "pandas"
        for parent in type(leaf).__mro__
    )
