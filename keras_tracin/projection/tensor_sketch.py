"""Count sketches of gradients, computed from factors where that is cheaper.

A count sketch adds each entry of a vector, with a random sign, to one of d
random bins (Charikar, Chen & Farach-Colton 2002): a projection whose matrix has
a single entry in each column, with the variance of a Gaussian projection. For
an outer product x δᵀ, bin and sign may combine those of the two sides, h(i) +
h'(j) modulo d and s(i)·s'(j); then the sketch is the circular convolution of
the sketches of x and δ (Pham & Pagh 2013), which takes two short Fourier
transforms, and the product itself is never computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

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

# Folded into a group's key: a side of a kernel, or one of several variables.
_INPUTS, _OUTPUTS, _PARTS = range(3)


@dataclasses.dataclass(frozen=True)
class TensorSketch:
    """Sum of the count sketches of all variables; kernels by their factors.

    This is the default projection: nearly as accurate as `GaussianProjection`,
    at a cost of O(i + o + dim·log dim) for a layer with i inputs and o outputs,
    or O(i·o) if its gradient is computed explicitly. Inner products are
    unbiased. Their variance is at most (‖g‖²‖g'‖² + (g·g')²) / dim for explicit
    gradients. For factors x δᵀ it is, with X = ‖x‖²‖x'‖², c = x·x',
    D = ‖δ‖²‖δ'‖² and e = δ·δ', about (X·D + c²·D + X·e² + 3c²e²) / dim. (For a
    vector with few large entries the variance is the same, but errors are
    uneven: usually zero, sometimes large.)

    Attributes:
        dim: length d of a sketch; a power of 2 is fastest.
        seed: sketches are the same for the same seed, on any device.

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
        sums: list[tf.Tensor] = []
        spectra: list[tf.Tensor] = []
        for group, key in groups_with_keys(factors, self.seed, position):
            if isinstance(group, LookupFactors):
                sums.append(self._sketch_rows(group, key))
            elif isinstance(group, OuterFactors) and self._convolves(group):
                spectra.append(self._spectrum(group, key))
            else:
                sums += self._sketch_explicit(algebra.materialize(group), key)
        if spectra:
            # The transform is linear: one inverse serves all layers.
            total = tf.add_n(spectra)
            sums.append(tf.signal.irfft(total, [self.dim]))
        return tf.add_n(sums)

    def _convolves(self, group: OuterFactors) -> bool:
        """Whether Fourier transforms cost less than the explicit gradient."""
        t, i, o = group.sizes
        if t is None or self._fits(i + group.bias, o):
            return False
        return t * (i + o + 2 * self.dim) < i * o

    def _fits(self, i: int, o: int) -> bool:
        """Whether each entry of a kernel can have a bin of its own."""
        return i * o <= self.dim

    def _spectrum(self, group: OuterFactors, key: tf.Tensor) -> tf.Tensor:
        """The Fourier transforms `[n, dim // 2 + 1]` of the sketches."""
        group = algebra.with_ones(group)
        sides = [
            self._sum_into_bins(
                side, *self._hash(side.shape[-1], random.fold(key, name))
            )
            for name, side in (
                (_INPUTS, group.inputs),
                (_OUTPUTS, group.grads),
            )
        ]
        x, delta = (tf.signal.rfft(side) for side in sides)
        return tf.reduce_sum(x * delta, axis=1)

    def _sketch_explicit(
        self, group: DenseGradients, key: tf.Tensor
    ) -> list[tf.Tensor]:
        """Sketches of explicit gradients, to be summed.

        A kernel, with its bias as one more row, has the same bins and signs as
        its factors.
        """
        o = group.outputs
        if o is None:
            return self._sketch_parts(group, key)
        sizes = [part.shape[1] for part in group.parts]
        i = sum(sizes) // o
        if self._fits(i, o):
            whole = DenseGradients((tf.concat(group.parts, axis=1),))
            return self._sketch_parts(whole, key)
        bins, sign = self._hash(i, random.fold(key, _INPUTS))
        other, turn = self._hash(o, random.fold(key, _OUTPUTS))
        bins_of_entries = tf.reshape(
            (bins[:, tf.newaxis] + other) % self.dim, [-1]
        )
        signs = tf.reshape(sign[:, tf.newaxis] * turn, [-1])
        split = tf.split(bins_of_entries, sizes), tf.split(signs, sizes)
        return [
            self._sum_into_bins(part, *where)
            for part, *where in zip(group.parts, *split, strict=True)
        ]

    def _sketch_rows(self, group: LookupFactors, key: tf.Tensor) -> tf.Tensor:
        """Sketches of a table's gradient, from the rows that occur."""
        o = group.grads.shape[-1]
        n = tf.shape(group.ids)[0]
        bins, sign = self._hash(group.vocabulary, random.fold(key, _INPUTS))
        other, turn = self._hash(o, random.fold(key, _OUTPUTS))
        rows = tf.gather(bins, group.ids)[:, :, tf.newaxis]  # [n, t, 1]
        bins_of_entries = (rows + other) % self.dim
        bins_of_entries += tf.range(n)[:, tf.newaxis, tf.newaxis] * self.dim
        signs = tf.cast(turn, group.grads.dtype) * tf.cast(
            tf.gather(sign, group.ids)[:, :, tf.newaxis], group.grads.dtype
        )
        sums = tf.math.unsorted_segment_sum(
            group.grads * signs, bins_of_entries, n * self.dim
        )
        return tf.reshape(sums, [-1, self.dim])

    def _sketch_parts(
        self, group: DenseGradients, key: tf.Tensor
    ) -> list[tf.Tensor]:
        """Sketches of gradients `[n, p]`, one for each variable."""
        sketches = []
        for number, part in enumerate(group.parts):
            variable_key = random.fold(key, _PARTS, number)
            size = part.shape[1]
            bins, sign = self._hash(size, variable_key)
            if size <= self.dim:  # a bin for each entry, from a random one on
                bins = (bins[0] + tf.range(size)) % self.dim
            sketches.append(self._sum_into_bins(part, bins, sign))
        return sketches

    def _hash(self, size: int, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Random bins and signs of `size` entries, `[size]` both."""
        return (
            random.below([size], self.dim, random.fold(key, 0)),
            random.signs([size], random.fold(key, 1)),
        )

    def _sum_into_bins(
        self, values: tf.Tensor, bins: tf.Tensor, signs: tf.Tensor
    ) -> tf.Tensor:
        """Sums `[n, ..., size]` into bins, with signs: `[n, ..., dim]`.

        It transposes, so that whole rows of examples are added at a time.
        """
        size = values.shape[-1]
        columns = tf.transpose(tf.reshape(values, [-1, size]))
        signs = tf.cast(signs, values.dtype)[:, tf.newaxis]
        sums = tf.math.unsorted_segment_sum(columns * signs, bins, self.dim)
        middle = values.shape[1:-1].as_list()
        shape = [-1, math.prod(middle), self.dim] if middle else [-1, self.dim]
        return tf.reshape(tf.transpose(sums), shape)
