"""EK-FAC: a Gauss-Newton curvature that can be inverted layer by layer.

The block of a kernel is taken to be diagonal in the basis `U_A ⊗ U_B` of the
eigenvectors of A = E[x xᵀ] and B = E[δ δᵀ] (George et al. 2018; Grosse et al.
2023, sec. 3.3), with the second moments of the gradients *in that basis* as
eigenvalues. Where only whole gradients g `[i, o]` are at hand (convolutions of
few channels, recurrent layers, layers without a rule), E[g gᵀ] and E[gᵀg] give
the basis, and a variable of up to 512 entries has its exact block. The rows of
an embedding are looked up one at a time, so its A is exactly diagonal; the side
of a vocabulary, of a table or of a projection to it, keeps its diagonal, and so
do longer vectors.

δ comes from pseudo-gradients whose covariance is the curvature of the loss by
the outputs, what labels drawn from the model give in expectation. Softmaxes may
have any number of classes, at each position of a sequence.

Synopsis:

    inverse = EKFAC().prepare(Damped(gauss_newton, 0.01))
    inverse(rows).value         # [m, p]
"""

from __future__ import annotations

import dataclasses
import numbers

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.kronecker import (
    Basis,
    Block,
    bases_of,
    eigenbasis,
    rotate,
    rotate_diagonal,
)
from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.solution import Solution


@dataclasses.dataclass(frozen=True)
class EKFAC:
    """Eigenvalue-corrected Kronecker factors (Grosse et al. 2023).

    Fitted once: the eigenvalues by a pass over the data for each draw of
    pseudo-gradients, the bases by a pass over as many as will do. Any
    right-hand side is then solved at once. It approximates the Gauss-Newton
    matrix layer by layer, so it needs that of a network and not a Hessian.

    Attributes:
        draws: number of pseudo-gradients of each example; or `"exact"`, one
            for each of up to 16 outputs, which leave nothing to chance; or
            `"auto"`, as many as make 5,000 of all examples (up to 16 of
            each), or exact ones where these are no more.
        seed: of random draws; the same draws the same ones.
    """

    draws: int | str = "auto"
    seed: int = 0

    def __post_init__(self):
        words = self.draws in ("auto", "exact")
        number = (
            isinstance(self.draws, numbers.Integral)
            and not isinstance(self.draws, bool)
            and self.draws > 0
        )
        if not words and not number:
            raise ValueError(
                "`draws` should be 'auto', 'exact' or a positive integer. "
                f"Received: {self.draws!r}."
            )

    def prepare(self, operator: Operator) -> EKFACInverse:
        """Fits the bases and the eigenvalues.

        Args:
            operator: the matrix to invert, damping included.

        Raises:
            ValueError: if the operator is not a network's Gauss-Newton
                matrix, if the loss's curvature by more than 512 outputs is
                neither that of a softmax nor diagonal, or if there are no
                exact draws of the outputs.
        """
        layers = operator.undamped.by_layer
        if layers is None:
            raise ValueError(
                "`EKFAC` inverts the Gauss-Newton matrix of a network. "
                f"Received: {type(operator.undamped).__name__}. Use "
                "curvature='gauss_newton', or a solver that needs products "
                "only, `CG()` for example."
            )
        draws = layers.draws(self.draws, self.seed)
        bases: list[Basis] = [
            eigenbasis(moments, layers.dtype)
            for moments in layers.moments(draws)
        ]
        penalties = layers.penalty_diagonal()
        eigenvalues = [
            squares
            + rotate_diagonal(block, basis, penalties)
            + operator.damping
            for block, basis, squares in zip(
                layers.blocks,
                bases,
                layers.mean_squares(bases, draws),
                strict=True,
            )
        ]
        return EKFACInverse(layers.blocks, tuple(bases), tuple(eigenvalues))


@dataclasses.dataclass(frozen=True, eq=False)
class EKFACInverse:
    """The inverse, block by block.

    Attributes:
        blocks: the blocks of a row.
        bases: U_A and U_B of each, of sides that have a basis.
        eigenvalues: `[i, o]` of each, damping included.
    """

    blocks: tuple[Block, ...]
    bases: tuple[Basis, ...]
    eigenvalues: tuple[tf.Tensor, ...]

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        parts = []
        for block, basis, values in zip(
            self.blocks, self.bases, self.eigenvalues, strict=True
        ):
            part = rhs[:, block.start : block.start + block.size]
            left, right = bases_of(block, basis)
            part = rotate(block.matrices(part), left, right)
            part = tf.math.divide_no_nan(part, values)
            back = (u if u is None else tf.transpose(u) for u in (left, right))
            parts.append(block.entries(rotate(part, *back)))
        count = len(rhs)
        return Solution(
            value=tf.concat(parts, axis=1),
            converged=np.ones(count, bool),
            steps=0,
            residual=np.full(count, np.nan),
        )
