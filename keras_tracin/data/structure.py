"""Arrays as `model.fit` takes them: `(x, y)` or `(x, y, sample_weight)`.

Synopsis:

    parts = unpack((x, y), "train")          # (x, y, None)
    check_lengths(parts, "train")            # the number of examples
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf


def unpack(
    data: Any, name: str = "data", labels: bool = True
) -> tuple[Any, Any, Any]:
    if not labels:
        data = data if isinstance(data, tuple) else (data,)
        data = (*data, None) if len(data) == 1 else data
    if not isinstance(data, tuple) or not 1 < len(data) < 4:
        received = type(data).__name__
        if isinstance(data, tuple):
            received += f" of length {len(data)}"
        raise TypeError(
            f"`{name}` should be a tuple of arrays (x, y) or (x, y, "
            "sample_weight), or a batched `tf.data.Dataset`, a "
            "`keras.utils.PyDataset` or a function that returns a generator "
            f"of such. Received: {received}. Where a model makes its targets "
            "of x, pass them, such as (x, x) for an autoencoder."
        )
    if not any(leaf is not None for leaf in tf.nest.flatten(data[0])):
        raise TypeError(
            f"`{name}` holds no inputs: received x={data[0]!r}, expected an "
            "array, or a dict, tuple or list of arrays."
        )
    if labels and all(leaf is None for leaf in tf.nest.flatten(data[1])):
        raise TypeError(
            f"`{name}` holds no labels: received y={data[1]!r}, expected "
            "(x, y) or (x, y, sample_weight)."
        )
    return (*data, None)[:3] if len(data) == 2 else data


def check_arrays(parts: Any, name: str = "data") -> None:
    """Raises TypeError for lists of Python's numbers or texts."""
    others = [
        leaf
        for leaf in tf.nest.flatten(parts)
        if leaf is not None and not hasattr(leaf, "shape")
    ]
    if others:
        raise TypeError(
            f"`{name}` should hold arrays. Received Python lists, of "
            f"{type(others[0]).__name__} for instance, which `fit` does not "
            "take either. Pass `np.array(...)` of them."
        )


def as_array(leaf: Any) -> Any:
    """Returns arrays as they are, but float64 in the precision of Keras."""
    if leaf is None or tf.is_tensor(leaf):
        return leaf
    if hasattr(leaf, "detach"):  # PyTorch's
        leaf = leaf.detach().cpu()
    array = np.asarray(leaf)
    if array.dtype == np.float64:
        return array.astype(keras.config.floatx(), copy=False)
    return array


def check_lengths(arrays: Any, name: str = "data") -> int:
    """The number of examples in nested arrays, one row for each."""
    leaves = [leaf for leaf in tf.nest.flatten(arrays) if leaf is not None]
    shapes = [tuple(leaf.shape) for leaf in leaves]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            f"All arrays of `{name}` should have one row per example. "
            f"Received arrays of shapes {shapes}."
        )
    length = shapes[0][0]
    if length == 0:
        raise ValueError(
            f"`{name}` is empty: received arrays of shapes {shapes}, expected "
            "at least one example."
        )
    return int(length)
