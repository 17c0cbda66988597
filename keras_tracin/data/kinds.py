"""What examples look like to people: images, texts, or rows of values.

Synopsis:

    for name, leaf in named_arrays(batch.x):     # "title", [n]
        kind_of(leaf)                            # "image", "text" or "row"
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

KINDS = ("image", "text", "row")
# Colours from 0 to 1 that were resized may exceed 1 by a part of it, and are
# refused; beyond this, they are from 0 to 255.
_OVERSHOT = 2.0


def named_arrays(x: Any, name: str = "") -> list[tuple[str, np.ndarray]]:
    """The arrays in a structure, with their paths as names."""
    if isinstance(x, dict):
        parts = [(str(key), x[key]) for key in sorted(x)]
    elif isinstance(x, tuple | list):
        parts = [(str(place), part) for place, part in enumerate(x)]
    else:
        return [] if x is None else [(name, np.asarray(x))]
    return [
        named
        for key, part in parts
        for named in named_arrays(part, f"{name}/{key}" if name else key)
    ]


def kind_of(leaf: np.ndarray) -> str:
    """The kind of an input `[n, ...]`, one of `KINDS`.

    Images have the shape `[n, h, w]` or `[n, h, w, 1, 3 or 4]`, texts are
    strings `[n]` or `[n, 1]`, anything else is a row.
    """
    if leaf.dtype.kind in "OSU":
        return "text" if math.prod(leaf.shape[1:]) == 1 else "row"
    return "image" if is_image(leaf.shape) else "row"


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether an array of this shape can be images."""
    return len(shape) == 3 or (len(shape) == 4 and shape[-1] in (1, 3, 4))


def is_grey(images: np.ndarray) -> bool:
    """Whether `images [n, h, w(, channels)]` have a single channel."""
    return images.ndim == 3 or images.shape[-1] == 1


def white_of(
    dtype: np.dtype, lowest: float, highest: float, name: str, remedy: str
) -> float:
    """The value of a colour at its brightest: 255, or 1.

    Integers are from 0 to 255. Floats are from 0 to 1, or from 0 to 255 as
    `image_dataset_from_directory` reads them; which of the two, the brightest
    tells.

    Args:
        dtype: type of the colours.
        lowest: lowest value of all images of the data.
        highest: highest value of all of them.
        name: name of the data, for errors.
        remedy: a sentence on what to do, for errors.

    Raises:
        ValueError: if they are neither.
    """
    white = 255.0
    if not np.issubdtype(dtype, np.integer) and not highest > _OVERSHOT:
        white = 1.0
    # Written so that NaN is refused, too.
    if not (lowest >= 0 and highest <= white):
        raise ValueError(
            f"The colours of the images in `{name}` should be from 0 to 255, "
            f"or floats from 0 to 1. Received: {dtype} from {lowest:.3g} to "
            f"{highest:.3g}. {remedy}"
        )
    return white


def as_text(value: Any) -> str:
    """A value as text; floats have six digits."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
