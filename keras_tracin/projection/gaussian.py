"""Dense Gaussian projections (Pruthi et al. 2020, section E).

G is divided into blocks of entries of variables. Each block is generated from
its own key when it is multiplied, and then discarded. Of a kernel's gradient,
only the entries of the present block are computed from the factors. The cost is
p·d multiplications for an example, and p·d random numbers for a batch.
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
from keras_tracin.projection.groups import groups_with_keys

_BLOCK = 2**22  # entries of G generated at a time
_ENTRIES = 4096  # largest number of entries of a variable in a block


@dataclasses.dataclass(frozen=True)
class GaussianProjection:
    """G∇ℓ with G `[dim, p]` of independent entries N(0, 1/dim).

    E[GᵀG] = I, so inner products of sketches are unbiased; their variance is
    (‖g‖²‖g'‖² + (g·g')²) / dim. It is a reference for accuracy:
    `TensorSketch` is nearly as accurate at a small part of the cost.

    Attributes:
        dim: length d of a sketch.
        seed: G is the same for the same seed, on any device.

    Raises:
        ValueError: if `dim` is not a positive integer, or `seed` not an integer
            of 0 or more.
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
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        return tf.add_n(
            [
                gaussian_sketch(group, self.dim, key)
                for group, key in groups_with_keys(factors, self.seed, position)
            ]
        )


def gaussian_sketch(factors: Factors, dim: int, key: tf.Tensor) -> tf.Tensor:
    """Sketches `[n, dim]` of the gradients of one group of variables.

    The key of a variable depends on its position in the group, that of a block
    on its position in the variable. So the sketch does not depend on the form
    of the factors, except for tables, where each row is a block.
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
    # Enough rows of the kernel to hold a block, wherever in its first row the
    # block begins.
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
    """Multiplies gradients `[n, size]` with G, block by block.

    Args:
        columns: function from the number of a block to the gradient's columns
            `[n, entries]`, zero beyond the last entry.
        like: a tensor of the gradients' type with examples on the first axis.
        size: number of entries of the variable.
        entries: number of entries in a block.
        dim: length of a sketch.
        key: key of the variable.
    """
    blocks = -(-size // entries)

    def product(block):
        matrix = random.normal(
            [entries, dim], random.fold(key, block), like.dtype
        )
        return tf.matmul(columns(block), matrix)

    if blocks == 1:
        return product(0)
    zeros = tf.zeros([tf.shape(like)[0], dim], like.dtype)
    _, total = tf.while_loop(
        lambda block, _: block < blocks,
        lambda block, total: (block + 1, total + product(block)),
        (tf.constant(0), zeros),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, dim]),
        ),
        parallel_iterations=1,  # limits memory to one block of G
    )
    return total


@_sketch_variable.register
def _(factors: LookupFactors, dim: int, key: tf.Tensor) -> tf.Tensor:
    """Uses a block for each row of the table that occurs."""
    width = factors.grads.shape[-1]
    length = tf.shape(factors.ids)[1]
    ids = tf.reshape(factors.ids, [-1])
    grads = tf.reshape(factors.grads, [-1, width])
    order = tf.argsort(ids, stable=True)
    rows, _, counts = tf.unique_with_counts(tf.gather(ids, order))
    starts = tf.cumsum(counts, exclusive=True)

    def add_row(at, total):
        places = order[starts[at] : starts[at] + counts[at]]
        matrix = random.normal(
            [width, dim], random.fold(key, rows[at]), grads.dtype
        )
        shares = tf.matmul(tf.gather(grads, places), matrix)
        examples = (places // length)[:, tf.newaxis]
        return at + 1, tf.tensor_scatter_nd_add(total, examples, shares)

    zeros = tf.zeros([tf.shape(factors.ids)[0], dim], grads.dtype)
    _, total = tf.while_loop(
        lambda at, _: at < tf.size(rows),
        add_row,
        (tf.constant(0), zeros),
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([None, dim]),
        ),
        parallel_iterations=1,
    )
    return total
