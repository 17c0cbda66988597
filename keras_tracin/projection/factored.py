"""Projections of the two sides of a kernel (Pruthi et al. 2020, section F).

The gradient of a kernel `[i, o]` is `Σ_t x_t δ_tᵀ`, so `G2 (Σ_t x_t δ_tᵀ) G1ᵀ`
needs only `G2 x_t` and `G1 δ_t`. The paper asks for E[G1G1ᵀ] = I, but inner
products are unbiased if E[G1ᵀG1] = I and E[G2ᵀG2] = I.
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
from keras_tracin.projection.groups import Group, groups_with_keys

# Folded into a group's key for each random matrix.
_OUTPUTS, _INPUTS, _SIGNS, _BIAS = range(4)


@dataclasses.dataclass(frozen=True)
class FactoredProjection:
    """G1 δ xᵀ G2ᵀ of every layer with a kernel (section F), summed over layers.

    Inputs and output gradients are projected separately, in O((i + o)√dim) per
    position; a bias is the weight of one more input, which is always 1.
    Positions of a convolution or a sequence are summed. Layers that do not
    factor have a Gaussian projection. Inner products are unbiased, but their
    variance falls with √dim only, since each side has only √dim entries:
    `TensorSketch` is as fast and more accurate.

    Rounding of √dim: δ is projected to a = ⌊√dim⌋ entries and x to
    b = ⌊dim / a⌋. A side with no more entries than that is not projected, and
    leaves its room to the other side. The remaining dim − a·b entries are zero.
    Sketches of the layers are added under independent random signs.

    Attributes:
        dim: length d of a sketch.
        seed: the matrices are the same for the same seed, on any device.
        joint: If true, the two sides are multiplied. If false, as in the first
            form of section F, G1 δ and G2 x are stored separately and
            multiplied only in inner products, `(G1 δ · G1 δ')(G2 x · G2 x')`.
            This takes less space, but is no vector for nearest-neighbour
            search.

    Raises:
        ValueError: if `dim` is not a positive integer, or `seed` not an integer
            of 0 or more.
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
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        return tf.add_n(
            [
                self._sketch_group(group, key)
                for group, key in groups_with_keys(factors, self.seed, position)
            ]
        )

    def sides(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tuple[Any, ...]:
        """Projects both sides of each group, as factors of a smaller kernel.

        Groups that do not factor are sketched.

        Args:
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        sides: list[Any] = []
        for group, key in groups_with_keys(factors, self.seed, position):
            if isinstance(group, DenseGradients):
                sides.append(DenseGradients((self._sketch_group(group, key),)))
            else:
                sides.append(OuterFactors(*self._project(group, key)))
        return tuple(sides)

    def _sketch_group(self, group: Group, key: tf.Tensor) -> tf.Tensor:
        if isinstance(group, DenseGradients):
            if group.outputs is None:
                return gaussian_sketch(group, self.dim, key)
            return self._sketch_kernel(group, group.outputs, key)
        inputs, grads = self._project(group, key)
        return self._flatten(tf.matmul(inputs, grads, transpose_a=True), key)

    def _sketch_kernel(self, group: DenseGradients, o: int, key) -> tf.Tensor:
        """Sketches a kernel's gradient `[n, i·o]` that is not in factors."""
        kernel, *bias = group.parts
        i = kernel.shape[1] // o
        a, b = self._lengths(i, o)
        kernel = tf.reshape(kernel, [-1, i, o])
        if b < i:
            matrix = _matrix(i, b, key, _INPUTS, kernel.dtype)
            kernel = tf.einsum("nio,ib->nbo", kernel, matrix)
        if a < o:
            kernel = kernel @ _matrix(o, a, key, _OUTPUTS, kernel.dtype)
        sketches = self._flatten(kernel, key)
        if bias:
            rest = DenseGradients(tuple(bias))
            bias_key = random.fold(key, _BIAS)
            sketches += gaussian_sketch(rest, self.dim, bias_key)
        return sketches

    def _project(
        self, group: OuterFactors | LookupFactors, key: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """G2 x `[n, t, b]` and G1 δ `[n, t, a]`."""
        grads = group.grads
        o = grads.shape[-1]
        if isinstance(group, LookupFactors):
            # x is one-hot at the row that was looked up: G2 x is a column of
            # G2.
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
        """Lengths a and b of the projections of δ and x, a·b ≤ dim."""
        side = math.isqrt(self.dim)
        a = min(o, side)
        b = min(i, self.dim // a)
        return min(o, self.dim // b), b

    def _flatten(self, kernel: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
        """Flattens `[n, b, a]` to `[n, dim]` with random signs."""
        size = kernel.shape[1] * kernel.shape[2]
        sign = random.signs([size], random.fold(key, _SIGNS), kernel.dtype)
        flat = tf.reshape(kernel, [-1, size]) * sign
        return tf.pad(flat, [(0, 0), (0, self.dim - size)])


def _matrix(size, length, key, purpose, dtype) -> tf.Tensor:
    """`[size, length]` of entries N(0, 1/length)."""
    gaussian = random.normal([size, length], random.fold(key, purpose), dtype)
    return gaussian / math.sqrt(length)
