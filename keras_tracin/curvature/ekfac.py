"""EK-FAC: a Gauss-Newton curvature that can be inverted layer by layer.

The block of a kernel is taken to be diagonal in the basis `U_A ⊗ U_B` of the
eigenvectors of A = E[x xᵀ] and B = E[δ δᵀ] (George et al. 2018; Grosse et al.
2023, sec. 3.3), with the second moments of the gradients *in that basis* as
eigenvalues. Where only whole gradients g `[i, o]` are at hand (convolutions of
few channels, recurrent layers), E[g gᵀ] and E[gᵀg] give the basis. Embeddings,
biases on their own and normalisations keep their diagonal.

δ comes from pseudo-gradients whose covariance is the curvature of the loss by
the outputs, what labels drawn from the model give in expectation.

Synopsis:

    inverse = fit_ekfac(hessian_like, functions, layers=None, damping=0.01)
    inverse(rows).value         # [m, p]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.kronecker import (
    Block,
    basis_of,
    blocks_of,
    moments_of,
    rotated,
    rotated_diagonal,
    spectrum_of,
)
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.pseudo_gradients import EACH_OUTPUT, pseudo_loss
from keras_tracin.curvature.solvers import Solution
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.flat import Groups
from keras_tracin.gradients.placement import place

_ENOUGH = 10_000  # pseudo-gradients, where outputs are many
_BATCH = 256


def fit_ekfac(
    operator: Hessian | GaussNewton, groups: Groups, layers: Any, damping: float
) -> EkfacInverse:
    """Fits EK-FAC to a model and its training data.

    Two passes over the data for each output of the model (up to 16; beyond,
    enough for 10,000 pseudo-gradients).

    Args:
        operator: the curvature that is approximated.
        groups: its variables, as `GradientFunctions.variables` groups them.
        layers: what the gradients are restricted to.
        damping: λ.

    Raises:
        ValueError: if the model has more than 512 outputs.
    """
    steps = _steps(operator, groups, layers)
    moments, _ = _summed(steps.moments, operator, steps.draws)
    bases = [
        basis_of(pair, operator.dtype) if block.kronecker else ()
        for block, pair in zip(steps.blocks, moments, strict=True)
    ]
    spectra, count = _summed(steps.spectra, operator, steps.draws, bases)
    bends = operator.penalty_diagonal()
    eigenvalues = [
        spectrum / count + rotated_diagonal(block, basis, bends) + damping
        for block, basis, spectrum in zip(
            steps.blocks, bases, spectra, strict=True
        )
    ]
    return EkfacInverse(steps.blocks, tuple(bases), tuple(eigenvalues))


def _summed(
    step: Callable, operator: Hessian | GaussNewton, draws: int, *args
) -> tuple[Any, int]:
    """What a step makes of all batches, and of how many examples that is.

    Every batch comes once for each draw, with a seed `[2]`.
    """
    total: Any = None
    count = 0
    for draw in range(draws):
        for at, data in enumerate(operator.held.batches(_BATCH)):
            found = step(data, tf.constant([draw, at], tf.int32), *args)
            total = (
                found
                if total is None
                else tf.nest.map_structure(tf.add, total, found)
            )
            count += len(tf.nest.flatten(data)[0])
    return total, count


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Compiled sums over a batch, and what they are of."""

    blocks: tuple[Block, ...]
    draws: int
    moments: Callable
    spectra: Callable


def _steps(
    operator: Hessian | GaussNewton, groups: Groups, layers: Any
) -> _Steps:
    outputs: list[int] = []

    def captured(data, seed) -> Sequence[Factors]:
        x, y, *weight = data

        def surrogate(y, y_pred, weight):
            return pseudo_loss(operator.loss, y, y_pred, weight, seed, outputs)

        batch = (x, y, weight[0] if weight else None)
        # Found without the surrogate, which counts how often it is called.
        placement = place(operator.model, x, layers)
        return capture(operator.model, surrogate, batch, placement).factors

    blocks: list[Block] = []

    def moments(data, seed):
        pairs = blocks_of(captured(data, seed), groups)
        blocks[:] = [block for block, _ in pairs]
        return [moments_of(block, factors) for block, factors in pairs]

    def spectra(data, seed, bases):
        pairs = blocks_of(captured(data, seed), groups)
        return [
            spectrum_of(block, factors, basis)
            for (block, factors), basis in zip(pairs, bases, strict=True)
        ]

    seed_spec = tf.TensorSpec([2], tf.int32)
    first = tf.function(
        moments, autograph=False, input_signature=(operator.spec, seed_spec)
    )
    first.get_concrete_function()
    width = max(outputs)
    draws = width
    if width > EACH_OUTPUT or len(outputs) > 1:
        count = operator.examples.size or _ENOUGH
        draws = min(max(1, math.ceil(_ENOUGH / count)), EACH_OUTPUT)
    return _Steps(
        tuple(blocks), draws, first, tf.function(spectra, autograph=False)
    )


@dataclasses.dataclass(frozen=True, eq=False)
class EkfacInverse:
    """The inverse, block by block.

    Attributes:
        blocks: which numbers of a row belong together.
        bases: `(U_A, U_B)` of each, or nothing for a diagonal.
        eigenvalues: `[i, o]` of each, damping included.
    """

    blocks: tuple[Block, ...]
    bases: tuple[tuple[tf.Tensor, ...], ...]
    eigenvalues: tuple[tf.Tensor, ...]

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """Solves for each row of `rhs [m, p]`."""
        parts = []
        for block, basis, values in zip(
            self.blocks, self.bases, self.eigenvalues, strict=True
        ):
            part = rhs[:, block.start : block.start + block.size]
            part = tf.reshape(part, [-1, block.rows, block.columns])
            if block.kronecker:
                left, right = basis
                part = rotated(part, left, right)
                part = tf.math.divide_no_nan(part, values)
                back = tf.transpose(left), tf.transpose(right)
                part = rotated(part, *back)
            else:
                part = tf.math.divide_no_nan(part, values)
            parts.append(tf.reshape(part, [-1, block.size]))
        count = len(rhs)
        return Solution(
            value=tf.concat(parts, axis=1),
            converged=np.ones(count, bool),
            steps=0,
            residual=np.full(count, np.nan),
        )
