"""The inverse on the directions that the curvature bends most."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Damped, Operator
from keras_tracin.curvature.solvers.solution import Solution
from keras_tracin.curvature.spectrum import Ritz, lanczos

_PROBES = 8  # random vectors that the rest of the space is judged by


@dataclasses.dataclass(frozen=True)
class Arnoldi:
    """The eigenpairs of largest magnitude (Schioppa et al. 2022).

    They are found once, in a Krylov space, and any right-hand side is then
    solved by two products `[m, p] × [p, rank]`: the way to self-influence.

    Attributes:
        rank: how many eigenpairs are kept, those of largest magnitude.
        steps: dimension of the Krylov space, one pass over the data each; by
            default the rank and a tenth more.
        complement: what is not within the kept space is divided by the mean
            curvature there, λ included, estimated with a few random vectors.
            With regularisers this is far above λ. False leaves it out, as
            Schioppa et al. do; so does a mean that is not positive.
        seed: of the space's first vector.
    """

    rank: int = 200
    steps: int | None = None
    complement: bool = True
    seed: int = 0

    def __post_init__(self):
        if self.rank < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(
                "`rank` and `steps` should be 1 or more. Received: "
                f"rank={self.rank!r}, steps={self.steps!r}."
            )

    def prepare(self, operator: Operator) -> ArnoldiInverse:
        """Finds the eigenpairs; a pass over the data for each step.

        Args:
            operator: what is to be inverted, damping included.
        """
        damping, inner = 0.0, operator
        if isinstance(operator, Damped):
            damping, inner = operator.damping, operator.operator
        steps = self.steps or self.rank + max(10, self.rank // 10)
        ritz = lanczos(inner, steps, self.seed)
        kept = np.sort(np.argsort(-np.abs(ritz.values))[: self.rank])
        negative = bool(ritz.values.min() + damping <= 0)
        raised = ritz.values[kept] + damping
        usable = np.abs(raised) > 1e-7 * np.abs(raised).max()
        kept = kept[usable]
        vectors = tf.gather(ritz.vectors, kept)
        outside = 0.0
        if self.complement and len(kept) < operator.size:
            mean = _mean_outside(inner, vectors, self.seed) + damping
            outside = 1 / mean if mean > 0 else 0.0
        return ArnoldiInverse(
            Ritz(raised[usable], vectors), outside, steps, negative
        )


def _mean_outside(operator: Operator, vectors: tf.Tensor, seed: int) -> float:
    """The mean eigenvalue where the space of `vectors [k, p]` does not reach.

    The Rayleigh quotient of random vectors with that space taken out.
    """
    probes = tf.random.stateless_normal(
        [_PROBES, operator.size], [seed, 2], dtype=operator.dtype, alg="philox"
    )
    shares = tf.matmul(probes, vectors, transpose_b=True)
    probes -= tf.matmul(shares, vectors)
    bent = tf.reduce_sum(probes * operator.matmat(probes))
    return float(bent / tf.reduce_sum(probes * probes))


@dataclasses.dataclass(frozen=True, eq=False)
class ArnoldiInverse:
    """The kept eigenpairs.

    Attributes:
        ritz: their values, damping included, and vectors.
        outside: what the rest of the space is multiplied by.
        steps: products with the operator that it took.
        negative_curvature: whether a negative eigenvalue was seen.
    """

    ritz: Ritz
    outside: float
    steps: int
    negative_curvature: bool

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        shares = tf.matmul(rhs, self.ritz.vectors, transpose_b=True)
        factors = tf.constant(1 / self.ritz.values - self.outside, rhs.dtype)
        value = tf.matmul(shares * factors, self.ritz.vectors)
        count = len(rhs)
        return Solution(
            value=value + self.outside * rhs,
            converged=np.ones(count, bool),
            steps=self.steps,
            residual=np.full(count, np.nan),
            negative_curvature=self.negative_curvature,
        )
