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
    inverse.save("inverse.npz"); EKFACInverse.load("inverse.npz")
    EKFAC(damping="relative").prepare(Damped(gauss_newton, RELATIVE_DAMPING))
"""

from __future__ import annotations

import dataclasses
import json
import numbers
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.eigenblocks import Eigenblocks, fit_eigenblocks
from keras_tracin.curvature.kronecker import Block, LayerCurvature
from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.solution import Solution
from keras_tracin.gradients.factors import KernelAxes
from keras_tracin.storage.arrays import load_arrays, save_arrays

RELATIVE_DAMPING = 0.1  # of a block's mean eigenvalue (Grosse et al. 2023)


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
        damping: None, where the damping of the operator is λ, the same for
            all blocks; or `"relative"`, where it is a multiple c, and the λ of
            a block is c times the block's own mean eigenvalue, regularisers
            included. A block is a kernel with its bias, or another variable.
        seed: of random draws; the same draws the same ones.
    """

    draws: int | str = "auto"
    damping: str | None = None
    seed: int = 0

    def __post_init__(self):
        if self.damping not in (None, "relative"):
            raise ValueError(
                "`EKFAC(damping=)` should be None or 'relative'. Received: "
                f"{self.damping!r}. A number is given to the method: "
                "`InfluenceFunctions(damping=)`."
            )
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
        return self.fit(layers, operator.damping)

    def fit(self, layers: LayerCurvature, damping: float) -> EKFACInverse:
        """Fits the inverse of a network's Gauss-Newton matrix.

        Args:
            layers: the matrix, block by block.
            damping: λ, added to its eigenvalues; with damping="relative", as
                a multiple of the mean eigenvalue of each block.

        Raises:
            ValueError: as `prepare`, for the loss and for exact draws.
        """
        draws = layers.draws(self.draws, self.seed)
        penalties = layers.penalty_diagonal()
        fitted = fit_eigenblocks(layers, lambda: [draws]).scaled(1.0, penalties)
        damped = [
            values + damping * self._unit(values)
            for values in fitted.eigenvalues
        ]
        return EKFACInverse(fitted.blocks, fitted.bases, tuple(damped))

    def _unit(self, values: tf.Tensor) -> tf.Tensor | float:
        """What the damping of a block with these eigenvalues counts in."""
        return 1.0 if self.damping is None else tf.reduce_mean(values)


@dataclasses.dataclass(frozen=True, eq=False)
class EKFACInverse(Eigenblocks):
    """The inverse of a matrix that is known block by block."""

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        (value,) = self.apply(rhs, _reciprocal)
        count = len(rhs)
        return Solution(
            value=value,
            converged=np.ones(count, bool),
            steps=0,
            residual=np.full(count, np.nan),
        )

    @property
    def reciprocals(self) -> tuple[tf.Tensor, ...]:
        """One over the eigenvalues, `[i, o]` of each block; zero for zero."""
        return tuple(map(_reciprocal, self.eigenvalues))

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` file, which appears whole or not at all."""
        arrays = {
            "blocks": json.dumps(list(map(dataclasses.asdict, self.blocks)))
        }
        for at, (basis, values) in enumerate(
            zip(self.bases, self.eigenvalues, strict=True)
        ):
            arrays[f"{at}"] = values.numpy()
            for side, vectors in enumerate(basis):
                arrays[f"{at} {side}"] = vectors.numpy()
        save_arrays(Path(path), arrays)

    @classmethod
    def load(cls, path: str | os.PathLike) -> EKFACInverse:
        """Reads what `save` wrote; it is right at the weights of that time.

        Raises:
            ValueError: if the file holds something else.
        """
        remedy = "Expected a file that `EKFACInverse.save` wrote."
        arrays = load_arrays(path, remedy)
        if "blocks" not in arrays:
            raise ValueError(f"{path} holds no factors of EK-FAC. {remedy}")
        blocks = list(map(_block, json.loads(str(arrays["blocks"]))))
        return cls(
            tuple(blocks),
            tuple(
                tuple(
                    tf.constant(arrays[f"{at} {side}"])
                    for side in range(len(block.sides))
                )
                for at, block in enumerate(blocks)
            ),
            tuple(tf.constant(arrays[f"{at}"]) for at in range(len(blocks))),
        )


def _reciprocal(values: tf.Tensor) -> tf.Tensor:
    """One over each; zero for zero."""
    return tf.math.divide_no_nan(tf.ones_like(values), values)


def _block(fields: dict) -> Block:
    axes = fields["axes"]
    if axes is not None:
        axes = KernelAxes(tuple(axes["sizes"]), tuple(axes["order"]))
    return Block(**{**fields, "axes": axes})
