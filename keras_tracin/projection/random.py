"""Random numbers that any device reproduces from a seed and counters.

A key is a pair of integers. Folding a counter into a key gives another key, so
that keys form a tree: seed, checkpoint, group of variables, block. The
generator is Philox, which is counter-based: integers and signs have the same
bits on every device, normal numbers are equal up to rounding of logarithm and
cosine.

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
    """Raises ValueError unless both are integers in range."""
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
    """The root key `[2]` of a projection."""
    return tf.constant([seed, 0], tf.int64)


def fold(key: tf.Tensor, *counters: tf.Tensor | int) -> tf.Tensor:
    """Folds counters into a key, one after another."""
    for counter in counters:
        key = _fold_in(key, tf.cast(counter, tf.int64))
    return key


# TensorFlow composes these of dozens of operations. As functions they are
# traced once, and are one operation wherever a step uses them.


@tf.function(
    autograph=False,
    input_signature=[tf.TensorSpec([2], tf.int64), tf.TensorSpec([], tf.int64)],
)
def _fold_in(key: tf.Tensor, counter: tf.Tensor) -> tf.Tensor:
    return tf.random.experimental.stateless_fold_in(
        key, counter, alg=_ALGORITHM
    )


@tf.function(
    autograph=False,
    input_signature=[
        tf.TensorSpec([None], tf.int32),
        tf.TensorSpec([2], tf.int64),
        tf.TensorSpec([], tf.int32),
    ],
)
def _uniform(shape: tf.Tensor, key: tf.Tensor, limit: tf.Tensor) -> tf.Tensor:
    return tf.random.stateless_uniform(
        shape, key, 0, limit, dtype=tf.int32, alg=_ALGORITHM
    )


def normal(
    shape: Sequence, key: tf.Tensor, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Standard normal numbers, generated in float32 and cast to `dtype`."""
    numbers = tf.random.stateless_normal(shape, key, alg=_ALGORITHM)
    return tf.cast(numbers, dtype)


def below(shape: Sequence, limit: int, key: tf.Tensor) -> tf.Tensor:
    """Uniform int32 numbers from 0 to `limit` - 1."""
    numbers = _uniform(shape, key, limit)
    return tf.ensure_shape(numbers, shape)


def signs(
    shape: Sequence, key: tf.Tensor, dtype: tf.DType = tf.float32
) -> tf.Tensor:
    """Random signs, 1 or -1."""
    return tf.cast(2 * below(shape, 2, key) - 1, dtype)
