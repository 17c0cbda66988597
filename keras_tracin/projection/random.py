"""Random numbers that any device makes again from a seed and counters.

A key is two whole numbers. Folding a counter into a key gives another, so that
keys make a tree: seed, checkpoint, group of variables, block. The generator is
Philox, which is counter-based: whole numbers and signs are the same bits
everywhere, normal numbers up to the rounding of logarithm and cosine.

Synopsis:

    key = fold(root(seed), checkpoint, group)
    block = normal([4096, 1024], fold(key, 7))
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

_ALGORITHM = "philox"


def check(dim: int, seed: int) -> None:
    """Raises ValueError unless both are whole numbers that can be used."""
    whole = isinstance(dim, int | np.integer) and not isinstance(dim, bool)
    if not whole or dim < 1:
        raise ValueError(
            "`dim`, the length of a sketch, should be a whole number of 1 or "
            f"more. Received: dim={dim!r}."
        )
    whole = isinstance(seed, int | np.integer) and not isinstance(seed, bool)
    if not whole or not 0 <= seed < 2**63:
        raise ValueError(
            "`seed` should be a whole number from 0 to 2**63 - 1. Received: "
            f"seed={seed!r}."
        )


def root(seed: int) -> tf.Tensor:
    """The key `[2]` that all others of a projection grow from."""
    return tf.constant([seed, 0], tf.int64)


def fold(key: tf.Tensor, *counters: tf.Tensor | int) -> tf.Tensor:
    """The key that counters, one after another, lead to."""
    for counter in counters:
        key = tf.random.experimental.stateless_fold_in(
            key, tf.cast(counter, key.dtype), alg=_ALGORITHM
        )
    return key


def normal(
    shape: Sequence, key: tf.Tensor, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Standard normal numbers, drawn in float32 whatever they are to be."""
    drawn = tf.random.stateless_normal(shape, key, alg=_ALGORITHM)
    return tf.cast(drawn, dtype)


def below(shape: Sequence, limit: int, key: tf.Tensor) -> tf.Tensor:
    """Whole numbers from 0 to `limit` - 1, all as likely, int32."""
    return tf.random.stateless_uniform(
        shape, key, 0, limit, dtype=tf.int32, alg=_ALGORITHM
    )


def signs(
    shape: Sequence, key: tf.Tensor, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Numbers that are 1 or -1, each half of the time."""
    return tf.cast(2 * below(shape, 2, key) - 1, dtype)
