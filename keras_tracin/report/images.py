"""Encodes images as data URIs, scaled down, with Pillow.

Synopsis:

    encode = encoder(lowest=0.0, highest=1.0)
    encode(image)  # "data:image/png;base64,…"
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import numpy as np

LARGEST = 160  # pixels: the longer side of an image on the page
_SHARP = 64  # pixels: up to this size, images are encoded losslessly
_QUALITY = 85  # of JPEG, from 0 to 95


def encoder(lowest: float, highest: float) -> Callable[[np.ndarray], str]:
    """Returns a function that encodes an image as a data URI.

    The function takes `[h, w]` or `[h, w, 1]`, drawn from black at `lowest` to
    white at `highest`, or `[h, w, 3 or 4]`, whose colours `check_colours` has
    accepted.

    Raises:
        ImportError: if Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Images in a report need Pillow, which is not installed. Install "
            "the `report` extra: pip install 'keras_tracin[report]'."
        ) from error

    def encode(pixels: np.ndarray) -> str:
        image = Image.fromarray(_bytes(pixels, lowest, highest))
        image.thumbnail((LARGEST, LARGEST))
        is_photo = max(image.size) > _SHARP and image.mode != "RGBA"
        kind = "jpeg" if is_photo else "png"
        options: dict[str, Any] = (
            {"quality": _QUALITY} if is_photo else {"optimize": True}
        )
        with io.BytesIO() as file:
            image.save(file, kind, **options)
            code = base64.b64encode(file.getvalue()).decode("ascii")
        return f"data:image/{kind};base64,{code}"

    return encode


def _bytes(pixels: np.ndarray, lowest: float, highest: float) -> np.ndarray:
    """Values from 0 to 255 of `[h, w]` or `[h, w, 3 or 4]`."""
    if pixels.ndim == 2 or pixels.shape[-1] == 1:
        grey = pixels.reshape(pixels.shape[:2]).astype(np.float64)
        span = (highest - lowest) or 1.0
        return np.rint((grey - lowest) / span * 255).astype(np.uint8)
    if np.issubdtype(pixels.dtype, np.integer):
        return pixels.astype(np.uint8)
    return np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
