"""Count sketches of gradients, kept in factors where that is cheaper.

A count sketch adds each of a vector's numbers, under a random sign, to one of
d places chosen at random (Charikar, Chen & Farach-Colton 2002): a projection
whose matrix has a single entry in each column, with the variance of a Gaussian
one. Of an outer product x δᵀ, place and sign may be those of the two sides
together, h(i) + h'(j) modulo d and s(i)·s'(j); then its sketch is the circular
convolution of the sketches of x and δ (Pham & Pagh 2013), two short Fourier
transforms, and the product itself is never made.
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
from keras_tracin.projection.groups import keyed

# Below a group's key: which side of a kernel, or which of several variables.
_INPUTS, _OUTPUTS, _PARTS = range(3)


@dataclasses.dataclass(frozen=True)
class TensorSketch:
    """Count sketches of every variable, summed; kernels by their factors.

    The default where one is needed: nearly as accurate as
    `GaussianProjection`, at O(i + o + dim·log dim) for a layer that reads one
    vector of i numbers and writes one of o, or O(i·o) where gradients are
    made anyway. Inner products are unbiased. Their variance is at most
    (‖g‖²‖g'‖² + (g·g')²) / dim where gradients are made. Kept in factors
    x δᵀ it is, with X = ‖x‖²‖x'‖², c = x·x', D = ‖δ‖²‖δ'‖² and e = δ·δ', about
    (X·D + c²·D + X·e² + 3c²e²) / dim. (A vector of few large numbers is
    sketched with the same variance but less evenly: most often without any
    error, at times with a large one.)

    Attributes:
        dim: d, the length of one checkpoint's sketch of the whole model. A
            power of 2 is fastest.
        seed: sketches are the same for the same seed, on any device.

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
        sums: list[tf.Tensor] = []
        spectra: list[tf.Tensor] = []
        for group, key in keyed(factors, self.seed, position):
            if isinstance(group, LookupFactors):
                sums.append(self._sketch_rows(group, key))
            elif isinstance(group, OuterFactors) and self._is_convolved(group):
                spectra.append(self._spectrum(group, key))
            else:
                sums += self._sketch_made(algebra.materialize(group), key)
        if spectra:
            # The transform is linear: one way back serves all layers.
            total = tf.add_n(spectra)
            sums.append(tf.signal.irfft(total, [self.dim]))
        return tf.add_n(sums)

    def _is_convolved(self, group: OuterFactors) -> bool:
        """Whether transforms cost less than the kernel's gradient."""
        t, i, o = group.sizes
        if t is None or self._fits(i + group.bias, o):
            return False
        return t * (i + o + 2 * self.dim) < i * o

    def _fits(self, i: int, o: int) -> bool:
        """Whether each of a kernel's numbers can have a place of its own."""
        return i * o <= self.dim

    def _spectrum(self, group: OuterFactors, key: tf.Tensor) -> tf.Tensor:
        """The Fourier transform `[n, dim // 2 + 1]` of the sketches."""
        group = algebra.with_ones(group)
        sides = [
            self._added(
                side, *self._hash(side.shape[-1], random.fold(key, name))
            )
            for name, side in (
                (_INPUTS, group.inputs),
                (_OUTPUTS, group.grads),
            )
        ]
        x, delta = (tf.signal.rfft(side) for side in sides)
        return tf.reduce_sum(x * delta, axis=1)

    def _sketch_made(
        self, group: DenseGradients, key: tf.Tensor
    ) -> list[tf.Tensor]:
        """Sketches of gradients that are made, to be summed.

        A kernel's, with its bias as one more row, has the places and signs
        that its factors would have.
        """
        o = group.outputs
        if o is None:
            return self._sketch_parts(group, key)
        sizes = [part.shape[1] for part in group.parts]
        i = sum(sizes) // o
        if self._fits(i, o):
            whole = DenseGradients((tf.concat(group.parts, axis=1),))
            return self._sketch_parts(whole, key)
        place, sign = self._hash(i, random.fold(key, _INPUTS))
        other, turn = self._hash(o, random.fold(key, _OUTPUTS))
        places = tf.reshape((place[:, tf.newaxis] + other) % self.dim, [-1])
        signs = tf.reshape(sign[:, tf.newaxis] * turn, [-1])
        split = tf.split(places, sizes), tf.split(signs, sizes)
        return [
            self._added(part, *where)
            for part, *where in zip(group.parts, *split, strict=True)
        ]

    def _sketch_rows(self, group: LookupFactors, key: tf.Tensor) -> tf.Tensor:
        """Sketches of a table's gradient: of the rows that occur, no others."""
        o = group.grads.shape[-1]
        n = tf.shape(group.ids)[0]
        place, sign = self._hash(group.vocabulary, random.fold(key, _INPUTS))
        other, turn = self._hash(o, random.fold(key, _OUTPUTS))
        rows = tf.gather(place, group.ids)[:, :, tf.newaxis]  # [n, t, 1]
        places = (rows + other) % self.dim
        places += tf.range(n)[:, tf.newaxis, tf.newaxis] * self.dim
        signs = tf.cast(turn, group.grads.dtype) * tf.cast(
            tf.gather(sign, group.ids)[:, :, tf.newaxis], group.grads.dtype
        )
        sums = tf.math.unsorted_segment_sum(
            group.grads * signs, places, n * self.dim
        )
        return tf.reshape(sums, [-1, self.dim])

    def _sketch_parts(
        self, group: DenseGradients, key: tf.Tensor
    ) -> list[tf.Tensor]:
        """Sketches of gradients `[n, p]`, one for each variable."""
        found = []
        for at, part in enumerate(group.parts):
            below = random.fold(key, _PARTS, at)
            size = part.shape[1]
            place, sign = self._hash(size, below)
            if size <= self.dim:  # a place of its own for each, from anywhere
                place = (place[0] + tf.range(size)) % self.dim
            found.append(self._added(part, place, sign))
        return found

    def _hash(self, size: int, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """A place and a sign for each of `size` numbers, `[size]` both."""
        return (
            random.below([size], self.dim, random.fold(key, 0)),
            random.signs([size], random.fold(key, 1)),
        )

    def _added(
        self, values: tf.Tensor, places: tf.Tensor, signs: tf.Tensor
    ) -> tf.Tensor:
        """`[n, ..., size]` added up in `places`: `[n, ..., dim]`.

        Whole rows of examples are added at a time, hence the turning round.
        """
        size = values.shape[-1]
        columns = tf.transpose(tf.reshape(values, [-1, size]))
        signs = tf.cast(signs, values.dtype)[:, tf.newaxis]
        sums = tf.math.unsorted_segment_sum(columns * signs, places, self.dim)
        middle = values.shape[1:-1].as_list()
        shape = [-1, math.prod(middle), self.dim] if middle else [-1, self.dim]
        return tf.reshape(tf.transpose(sums), shape)
