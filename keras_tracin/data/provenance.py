"""What a dataset was made of, which tf.data does not tell in public.

Private members of `tf.data.Dataset` are read here and nowhere else.

Synopsis:

    inputs, functions = made_of(dataset.map(f).zip(other))
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_MEMBERS = ("_inputs", "_functions")


def made_of(dataset: tf.data.Dataset) -> tuple[list[tf.data.Dataset], list]:
    """The datasets that a dataset was made of, and the functions it calls.

    Args:
        dataset: the dataset.

    Raises:
        NotImplementedError: if this version of TensorFlow does not tell.
    """
    try:
        inputs, functions = (
            list[Any](getattr(dataset, member)()) for member in _MEMBERS
        )
    except (AttributeError, NotImplementedError) as error:
        raise NotImplementedError(
            f"TensorFlow {tf.__version__} does not tell what a "
            f"{type(dataset).__name__} was made of, and so not whether it "
            "reads a folder, or has lost ids. Attach ids of your own to single "
            "examples, `kt.with_ids(data.unbatch(), ids).batch(...)`, or use "
            "another version of TensorFlow."
        ) from error
    return inputs, functions
