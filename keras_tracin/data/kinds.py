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


def check_colours(images: np.ndarray, name: str, remedy: str) -> None:
    """Refuses colours that are out of range.

    Args:
        images: images of three or four channels.
        name: name of the data, for errors.
        remedy: a sentence on what to do, for errors.

    Raises:
        ValueError: if they are no integers from 0 to 255 nor floats from 0
            to 1.
    """
    highest = 255 if np.issubdtype(images.dtype, np.integer) else 1
    # Written so that NaN is refused, too.
    if not (images.min() >= 0 and images.max() <= highest):
        raise ValueError(
            f"The colours of the images in `{name}` should be integers from 0 "
            f"to 255 or floats from 0 to 1. Received: {images.dtype} from "
            f"{images.min():.3g} to {images.max():.3g}. {remedy}"
        )


def as_text(value: Any) -> str:
    """A value as text; floats have six digits."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return f"{value:.6g}" if isinstance(value, float) else str(value)
