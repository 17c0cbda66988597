"""Random factors, and their gradients written out in full."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import (
    DenseGradients,
    KernelAxes,
    LookupFactors,
    OuterFactors,
    PositionGradients,
    TableFactors,
    materialize,
)

VOCABULARY = 6


def normal(rng, *shape):
    return tf.constant(rng.normal(size=shape))


def outer(n, t, i, o, bias, seed=0):
    rng = np.random.default_rng(seed)
    return OuterFactors(normal(rng, n, t, i), normal(rng, n, t, o), bias)


def heads_first(n, t, i, o, bias, seed=0):
    """Factors of a kernel `[heads, i, o / heads]`, of two heads."""
    axes = KernelAxes((i, 2, o // 2), (1, 0, 2))
    return dataclasses.replace(outer(n, t, i, o, bias, seed), axes=axes)


def looked_up(n, t, o, seed=0):
    rng = np.random.default_rng(seed)
    ids = tf.constant(rng.integers(VOCABULARY, size=(n, t)), tf.int32)
    return LookupFactors(ids, normal(rng, n, t, o), VOCABULARY)


def dense(n, *widths, seed=0):
    rng = np.random.default_rng(seed)
    return DenseGradients(tuple(normal(rng, n, p) for p in widths))


def tied(n, s, t, o, seed=0):
    return TableFactors(
        looked_up(n, s, o, seed), outer(n, t, VOCABULARY, o, False, seed + 9)
    )


def rows(factors) -> np.ndarray:
    """The gradients `[n, p]`, built one position at a time."""
    if isinstance(factors, TableFactors):
        return rows(factors.looked_up) + rows(factors.outer)
    if isinstance(factors, DenseGradients):
        return np.concatenate([part.numpy() for part in factors.parts], axis=1)
    if isinstance(factors, PositionGradients):
        sums = [part.numpy().sum(axis=1) for part in factors.parts]
        return np.concatenate(sums, axis=1)
    grads = factors.grads.numpy()
    n, t, o = grads.shape
    result = []
    for example in range(n):
        if isinstance(factors, LookupFactors):
            kernel = np.zeros((factors.vocabulary, o))
            for position in range(t):
                row = factors.ids[example, position].numpy()
                kernel[row] += grads[example, position]
            result.append(kernel.ravel())
            continue
        kernel = sum(
            np.outer(
                factors.inputs[example, position], grads[example, position]
            )
            for position in range(t)
        )
        if factors.axes is not None:
            i, heads, width = factors.axes.sizes
            kernel = kernel.reshape(i, heads, width).swapaxes(0, 1)
        bias = grads[example].sum(axis=0) if factors.bias else []
        result.append(np.concatenate([kernel.ravel(), bias]))
    return np.stack(result)


# Pairs of `n = 4` and `m = 3` examples' factors of the same variables.
PAIRS = {
    "outer, one position": (
        outer(4, 1, 3, 2, True),
        outer(3, 1, 3, 2, True, 1),
    ),
    "outer, no bias": (outer(4, 1, 3, 2, False), outer(3, 1, 3, 2, False, 1)),
    "outer, few positions": (
        outer(4, 2, 30, 40, True),
        outer(3, 2, 30, 40, True, 1),
    ),
    "outer, few positions, no bias": (
        outer(4, 2, 30, 40, False),
        outer(3, 2, 30, 40, False, 1),
    ),
    "outer, many positions": (
        outer(4, 9, 3, 2, True),
        outer(3, 9, 3, 2, True, 1),
    ),
    "outer, other lengths": (
        outer(4, 1, 30, 40, True),
        outer(3, 2, 30, 40, True, 1),
    ),
    "outer, heads first": (
        heads_first(4, 2, 3, 4, True),
        heads_first(3, 2, 3, 4, True, 1),
    ),
    "outer, heads first, few positions": (
        heads_first(4, 1, 30, 40, False),
        heads_first(3, 2, 30, 40, False, 1),
    ),
    "heads first beside directions": (
        heads_first(4, 1, 300, 300, True),
        dense(3, 90_000, 300, seed=1),
    ),
    "lookup": (looked_up(4, 5, 2), looked_up(3, 5, 2, 1)),
    "lookup, other lengths": (looked_up(4, 5, 2), looked_up(3, 1, 2, 1)),
    "table": (tied(4, 5, 2, 40), tied(3, 5, 2, 40, 1)),
    "table, other lengths": (tied(4, 5, 1, 40), tied(3, 2, 2, 40, 1)),
    "table, many positions": (tied(4, 5, 4, 2), tied(3, 5, 4, 2, 1)),
    "table beside materialized": (
        tied(4, 5, 2, 3),
        materialize(tied(3, 5, 2, 3, 1)),
    ),
    "materialized beside table": (
        materialize(tied(4, 5, 2, 3)),
        tied(3, 5, 2, 3, 1),
    ),
    "dense": (dense(4, 5), dense(3, 5, seed=1)),
    "dense, several variables": (dense(4, 5, 1, 2), dense(3, 5, 1, 2, seed=1)),
    "outer beside materialized": (
        outer(4, 2, 3, 2, True),
        materialize(outer(3, 2, 3, 2, True, 1)),
    ),
    "materialized beside outer": (
        materialize(outer(4, 2, 3, 2, True)),
        outer(3, 2, 3, 2, True, 1),
    ),
    "a large kernel beside directions": (
        outer(4, 1, 300, 300, True),
        dense(3, 90_000, 300, seed=1),
    ),
    "directions beside a large kernel, no bias": (
        dense(3, 90_000, seed=1),
        outer(4, 1, 300, 300, False),
    ),
    "lookup beside directions": (
        looked_up(4, 5, 2),
        dense(3, 2 * VOCABULARY, seed=1),
    ),
    "directions beside lookup": (
        dense(3, 2 * VOCABULARY, seed=1),
        looked_up(4, 5, 2),
    ),
}
