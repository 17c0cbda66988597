"""Small symmetric matrices as operators."""

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Damped, Matrix, Operator

SIZE = 30


@dataclasses.dataclass(frozen=True, eq=False)
class Noisy(Operator):
    """A mean of matrices; a sample is the mean of some of them."""

    parts: np.ndarray  # [n, p, p]

    size = property(lambda self: self.parts.shape[1])
    dtype = tf.float64

    def matmat(self, vectors):
        return Matrix(self.parts.mean(axis=0)).matmat(vectors)

    def sample(self, rng, batch_size):
        count = min(batch_size, len(self.parts))
        chosen = rng.choice(len(self.parts), count, replace=False)
        return Noisy(self.parts[chosen])


def noisy():
    """Twelve matrices `g gᵀ`, as those of a generalised linear model."""
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(12, SIZE)) / 4
    return Damped(Noisy(np.einsum("ni,nj->nij", vectors, vectors)), 0.3)
