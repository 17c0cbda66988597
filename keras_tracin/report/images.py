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

    The function takes `[h, w]` or `[h, w, 1, 3 or 4]`, with black at `lowest`
    and white, or the brightest of a colour, at `highest`.

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
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    span = (highest - lowest) or 1.0
    shares = (pixels.astype(np.float64) - lowest) / span
    return np.rint(shares * 255).astype(np.uint8)
