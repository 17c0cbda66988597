"""Which file of a folder of images cannot be read.

Images are decoded in the middle of the work, where TensorFlow names no file.

Synopsis:

    message = broken_image("test_data", "photos/test")  # None if all are read
"""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png")  # that Keras reads


def broken_image(flag: str, folder: str) -> str | None:
    """Says which image in a folder's subfolders cannot be decoded.

    Args:
        flag: the flag that names the folder, without dashes.
        folder: the folder; anything else has no images.
    """
    for path in sorted(Path(folder).glob("*/**/*")):
        if path.suffix.lower() not in IMAGES or not path.is_file():
            continue
        try:
            tf.io.decode_image(path.read_bytes())
        except tf.errors.InvalidArgumentError:
            return (
                f"--{flag} should hold images that can be read. Received: "
                f"{path}, which TensorFlow cannot decode. Replace or remove it."
            )
    return None
