"""Projections of a kernel's two sides (section F).

The gradient of a kernel `[i, o]` is `Σ_t x_t δ_tᵀ`, so `G2 (Σ_t x_t δ_tᵀ) G1ᵀ`
needs only `G2 x_t` and `G1 δ_t`. The source asks for E[G1G1ᵀ] = I; what makes
inner products unbiased is E[G1ᵀG1] = I, and E[G2ᵀG2] = I.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
)
from keras_tracin.projection import random
from keras_tracin.projection.gaussian import gaussian_sketch
from keras_tracin.projection.groups import Group, keyed

# Below the group's key: what each random matrix is for.
_OUTPUTS, _INPUTS, _PLACES, _REST = range(4)


@dataclasses.dataclass(frozen=True)
class FactoredProjection:
    """G1 δ xᵀ G2ᵀ of every layer with a kernel (section F), summed over layers.

    Inputs and output gradients are projected apart, in O((i + o)√dim) for a
    position; a bias is the weight of one more input, which is always 1.
    Positions of a convolution or a sequence are summed. Layers that do not
    factor use a Gaussian of their own. Inner products are unbiased; their
    noise falls with √dim only, since each side has but √dim numbers:
    `TensorSketch` is as fast and better.

    How √dim is rounded: δ is projected to a = ⌊√dim⌋ numbers and x to
    b = ⌊dim / a⌋. A side that has no more numbers than that is kept as it is
    and leaves the room to the other. The dim − a·b places that are left stay
    empty. The sketches of several layers share the dim places under
    independent random signs.

    Attributes:
        dim: d, the length of one checkpoint's sketch of the whole model.
        seed: the matrices are the same for the same seed, on any device.
        joint: whether the two sides are multiplied out. False is section F's
            first form: G1 δ and G2 x are kept apart and multiplied when they
            meet another example's, `(G1 δ · G1 δ')(G2 x · G2 x')`. This takes
            less space, but is nothing that neighbours can be searched in.

    Raises:
        ValueError: if `dim` is not a whole number of 1 or more, or `seed` not
            one of 0 or more.
    """

    dim: int
    seed: int = 0
    joint: bool = True

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
                self._sketch_group(group, key)
                for group, key in keyed(factors, self.seed, position)
            ]
        )

    def sides(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tuple[Any, ...]:
        """The two sides of each group apart, as factors of a smaller kernel.

        Groups that do not factor are sketched.

        Args:
            factors: those of all groups of variables, in the model's order.
            position: the checkpoint's, among those that are visited.
        """
        found: list[Any] = []
        for group, key in keyed(factors, self.seed, position):
            if isinstance(group, DenseGradients):
                found.append(DenseGradients((self._sketch_group(group, key),)))
            else:
                found.append(OuterFactors(*self._project(group, key)))
        return tuple(found)

    def _sketch_group(self, group: Group, key: tf.Tensor) -> tf.Tensor:
        if isinstance(group, DenseGradients):
            if group.outputs is None:
                return gaussian_sketch(group, self.dim, key)
            return self._sketch_kernel(group, group.outputs, key)
        inputs, grads = self._project(group, key)
        return self._placed(tf.matmul(inputs, grads, transpose_a=True), key)

    def _sketch_kernel(self, group: DenseGradients, o: int, key) -> tf.Tensor:
        """A kernel's gradient `[n, i·o]` that has been made already."""
        kernel, *bias = group.parts
        i = kernel.shape[1] // o
        a, b = self._lengths(i, o)
        kernel = tf.reshape(kernel, [-1, i, o])
        if b < i:
            matrix = _matrix(i, b, key, _INPUTS, kernel.dtype)
            kernel = tf.einsum("nio,ib->nbo", kernel, matrix)
        if a < o:
            kernel = kernel @ _matrix(o, a, key, _OUTPUTS, kernel.dtype)
        placed = self._placed(kernel, key)
        if bias:
            rest = DenseGradients(tuple(bias))
            below = random.fold(key, _REST)
            placed += gaussian_sketch(rest, self.dim, below)
        return placed

    def _project(
        self, group: OuterFactors | LookupFactors, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """G2 x `[n, t, b]` and G1 δ `[n, t, a]`."""
        grads = group.grads
        o = grads.shape[-1]
        if isinstance(group, LookupFactors):
            # x is 1 at the row that was looked up: G2 x is a column of G2.
            i = group.vocabulary
            a, b = self._lengths(i, o)
            if b < i:
                matrix = _matrix(i, b, key, _INPUTS, grads.dtype)
                inputs = tf.gather(matrix, group.ids)
            else:
                inputs = tf.one_hot(group.ids, i, dtype=grads.dtype)
        else:
            inputs = algebra.with_ones(group).inputs
            i = inputs.shape[-1]
            a, b = self._lengths(i, o)
            if b < i:
                inputs @= _matrix(i, b, key, _INPUTS, grads.dtype)
        if a < o:
            grads @= _matrix(o, a, key, _OUTPUTS, grads.dtype)
        return inputs, grads

    def _lengths(self, i: int, o: int) -> tuple[int, int]:
        """How many numbers δ and x are projected to: a and b, a·b ≤ dim."""
        side = math.isqrt(self.dim)
        a = min(o, side)
        b = min(i, self.dim // a)
        return min(o, self.dim // b), b

    def _placed(self, kernel: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """`[n, b, a]` among the `dim` places that all layers share."""
        size = kernel.shape[1] * kernel.shape[2]
        sign = random.signs([size], random.fold(key, _PLACES), kernel.dtype)
        flat = tf.reshape(kernel, [-1, size]) * sign
        return tf.pad(flat, [(0, 0), (0, self.dim - size)])


def _matrix(size, length, key, purpose, dtype) -> tf.Tensor:
    """`[size, length]` of entries N(0, 1/length)."""
    drawn = random.normal([size, length], random.fold(key, purpose), dtype)
    return drawn / math.sqrt(length)
