"""Dense Gaussian projections (section E).

G is cut into blocks of variables' entries, each drawn from a key of its own
when it is multiplied with and dropped again. Of a kernel, only the entries that
a block covers are made from its factors. The work is p·d multiplications for
an example, and p·d random numbers for a batch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
)
from keras_tracin.projection import random
from keras_tracin.projection.groups import keyed

_BLOCK = 2**22  # numbers of G made at a time
_ENTRIES = 4096  # of a variable in a block, at most


@dataclasses.dataclass(frozen=True)
class GaussianProjection:
    """G∇ℓ with G `[dim, p]` of independent entries N(0, 1/dim) (section E).

    E[GᵀG] = I, so inner products of sketches are unbiased; their variance is
    (‖g‖²‖g'‖² + (g·g')²) / dim. This is the yardstick: `TensorSketch` has
    nearly its accuracy at a small part of its cost.

    Attributes:
        dim: d, the length of one checkpoint's sketch of the whole model.
        seed: G is the same for the same seed, on any device.

    Raises:
        ValueError: if `dim` is not a whole number of 1 or more, or `seed` not
            one of 0 or more.
    """

    dim: int
    seed: int = 0

    def __post_init__(self):
        random.check(self.dim, self.seed)

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Sketches `[n, dim]` of `n` examples' gradients.

        Args:
            factors: those of all groups of variables, in the model's order.
            position: the checkpoint's, among those that are visited.
        """
        return tf.add_n(
            [
                gaussian_sketch(group, self.dim, key)
                for group, key in keyed(factors, self.seed, position)
            ]
        )


def gaussian_sketch(factors: Factors, dim: int, key: tf.Tensor) -> tf.Tensor:
    """Sketches `[n, dim]` of the variables of one group.

    The key of a variable, and so its part of G, follows from its place in the
    group, that of a block from its place in the variable: the form in which
    a gradient comes does not matter, but for rows of tables, which are blocks
    each.
    """
    pieces = [
        _sketch_variable(piece, dim, random.fold(key, at))
        for at, piece in enumerate(algebra.split(factors))
    ]
    return tf.add_n(pieces) / math.sqrt(dim)


@functools.singledispatch
def _sketch_variable(factors: Factors, dim: int, key: tf.Tensor) -> tf.Tensor:
    raise TypeError(
        f"Expected factors of gradients, received: {type(factors)}."
    )


@_sketch_variable.register
def _(factors: DenseGradients, dim: int, key: tf.Tensor) -> tf.Tensor:
    (part,) = factors.parts
    size = part.shape[1]
    entries = _entries_per_block(size, dim)
    padded = tf.pad(part, [(0, 0), (0, -size % entries)])

    def columns(block):
        return padded[:, block * entries : (block + 1) * entries]

    return _times_blocks(columns, part, size, entries, dim, key)


@_sketch_variable.register
def _(factors: OuterFactors, dim: int, key: tf.Tensor) -> tf.Tensor:
    _, i, o = factors.sizes
    entries = _entries_per_block(i * o, dim)
    # So many rows of the kernel that a block lies within them, wherever in
    # its first row it begins.
    rows = -(-entries // o) + 1
    padded = tf.pad(factors.inputs, [(0, 0), (0, 0), (0, rows)])

    def columns(block):
        first = block * entries // o
        inputs = padded[:, :, first : first + rows]
        kernel = tf.matmul(inputs, factors.grads, transpose_a=True)
        start = block * entries - first * o
        flat = tf.reshape(kernel, [-1, rows * o])
        return flat[:, start : start + entries]

    return _times_blocks(columns, factors.grads, i * o, entries, dim, key)


def _entries_per_block(size: int, dim: int) -> int:
    return min(size, _ENTRIES, max(1, _BLOCK // dim))


def _times_blocks(
    columns: Callable,
    like: tf.Tensor,
    size: int,
    entries: int,
    dim: int,
    key: tf.Tensor,
) -> tf.Tensor:
    """Σ over blocks of gradient columns `[n, entries]` times their part of G.

    Args:
        columns: of a block's number, the columns; zero beyond the last entry.
        like: a tensor with the examples first, of the gradients' type.
        size: entries of the variable.
        entries: those of a block.
        dim: the length of a sketch.
        key: of this variable.
    """
    blocks = -(-size // entries)

    def share(block):
        drawn = random.normal(
            [entries, dim], random.fold(key, block), like.dtype
        )
        return tf.matmul(columns(block), drawn)

    if blocks == 1:
        return share(0)
    nothing = tf.zeros([tf.shape(like)[0], dim], like.dtype)
    _, total = tf.while_loop(
        lambda block, _: block < blocks,
        lambda block, total: (block + 1, total + share(block)),
        (tf.constant(0), nothing),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, dim]),
        ),
        parallel_iterations=1,  # or many blocks of G would be held at once
    )
    return total


@_sketch_variable.register
def _(factors: LookupFactors, dim: int, key: tf.Tensor) -> tf.Tensor:
    """A block for each row of the table that occurs, whatever its size."""
    width = factors.grads.shape[-1]
    length = tf.shape(factors.ids)[1]
    ids = tf.reshape(factors.ids, [-1])
    grads = tf.reshape(factors.grads, [-1, width])
    order = tf.argsort(ids, stable=True)
    rows, _, counts = tf.unique_with_counts(tf.gather(ids, order))
    starts = tf.cumsum(counts, exclusive=True)

    def add_row(at, total):
        places = order[starts[at] : starts[at] + counts[at]]
        drawn = random.normal(
            [width, dim], random.fold(key, rows[at]), grads.dtype
        )
        shares = tf.matmul(tf.gather(grads, places), drawn)
        examples = (places // length)[:, tf.newaxis]
        return at + 1, tf.tensor_scatter_nd_add(total, examples, shares)

    nothing = tf.zeros([tf.shape(factors.ids)[0], dim], grads.dtype)
    _, total = tf.while_loop(
        lambda at, _: at < tf.size(rows),
        add_row,
        (tf.constant(0), nothing),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, dim]),
        ),
        parallel_iterations=1,
    )
    return total
