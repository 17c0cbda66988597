"""The inverse on the directions of largest curvature.

Synopsis:

    inverse = Arnoldi(rank=200).prepare(Damped(hessian, 0.01))
    inverse(rows).value         # [m, p]
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.solution import Solution
from keras_tracin.curvature.spectrum import Ritz, lanczos

_PROBES = 8  # random vectors that the mean outside is estimated with


@dataclasses.dataclass(frozen=True)
class Arnoldi:
    """The eigenpairs of largest magnitude (Schioppa et al. 2022).

    They are computed once, in a Krylov space, and any right-hand side is then
    solved by two products `[m, p] × [p, rank]`: this suits self-influence.

    Attributes:
        rank: number of eigenpairs to keep, those of largest magnitude.
        steps: dimension of the Krylov space, one pass over the data each; by
            default the rank and a tenth more.
        complement: whether the part of a right-hand side outside the kept
            space is divided by the mean curvature there, λ included, as a few
            random vectors estimate it. With regularisers this is far above λ.
            False leaves that part out, as Schioppa et al. do; so does a mean
            that is not positive.
        seed: seed of the space's first vector.
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
        """Computes the eigenpairs; a pass over the data for each step.

        Args:
            operator: the matrix to invert, damping included.
        """
        # A + λI has the Krylov spaces of A.
        damping, undamped = operator.damping, operator.undamped
        steps = self.steps or self.rank + max(10, self.rank // 10)
        ritz = lanczos(undamped, steps, self.seed)
        kept = np.sort(np.argsort(-np.abs(ritz.values))[: self.rank])
        negative = bool(ritz.values.min() + damping <= 0)
        raised = ritz.values[kept] + damping
        usable = np.abs(raised) > 1e-7 * np.abs(raised).max()
        kept = kept[usable]
        vectors = tf.gather(ritz.vectors, kept)
        outside = 0.0
        if self.complement and len(kept) < operator.size:
            mean = _mean_outside(undamped, vectors, self.seed) + damping
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
    curvature = tf.reduce_sum(probes * operator.matmat(probes))
    return float(curvature / tf.reduce_sum(probes * probes))


@dataclasses.dataclass(frozen=True, eq=False)
class ArnoldiInverse:
    """The kept eigenpairs.

    Attributes:
        ritz: their values, damping included, and vectors.
        outside: factor of the part outside the kept space.
        steps: number of products with the operator that it took.
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
