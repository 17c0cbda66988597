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

from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.solvers import Solution
from keras_tracin.gradients import flat
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    OuterFactors,
)
from keras_tracin.gradients.flat import Groups, size_of

_LARGEST_SIDE = 8192  # of a kernel, to be diagonalised
_MOST_OUTPUTS = 512  # whose curvature is written out for each example
_EACH_OUTPUT = 16  # outputs up to which each has a pass of its own
_ENOUGH = 10_000  # pseudo-gradients, where outputs are many
_BATCH = 256


@dataclasses.dataclass(frozen=True)
class Block:
    """Neighbouring numbers of a row, as a matrix `[i, o]` or a diagonal.

    Attributes:
        start: where they begin in a row.
        rows: i; 1 for a diagonal.
        columns: o.
        kronecker: whether there are bases to be found.
    """

    start: int
    rows: int
    columns: int
    kronecker: bool

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.rows * self.columns


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
    first = _steps(operator, groups, layers)
    draws = first.draws
    blocks = first.blocks
    moments: list[Any] = []
    count = 0
    for data, seed in _passes(operator, draws):
        found = first.moments(data, seed)
        moments = (
            [
                [a + b for a, b in zip(*pair, strict=True)]
                for pair in zip(moments, found, strict=True)
            ]
            if moments
            else [list(pair) for pair in found]
        )
    bases = [
        _basis(pair, operator.dtype) if block.kronecker else ()
        for block, pair in zip(blocks, moments, strict=True)
    ]
    spectra: list[Any] = []
    for data, seed in _passes(operator, draws):
        found = first.spectra(data, seed, bases)
        spectra = (
            [a + b for a, b in zip(spectra, found, strict=True)]
            if spectra
            else list(found)
        )
        count += len(tf.nest.flatten(data)[0])
    bends = operator.penalty_diagonal()
    eigenvalues = [
        spectrum / count + _rotated_diagonal(block, basis, bends) + damping
        for block, basis, spectrum in zip(blocks, bases, spectra, strict=True)
    ]
    return EkfacInverse(blocks, tuple(bases), tuple(eigenvalues))


def _passes(operator: Hessian | GaussNewton, draws: int):
    """Yields each batch with a seed `[2]`, once for each draw."""
    for draw in range(draws):
        for at, data in enumerate(operator.held.batches(_BATCH)):
            yield data, tf.constant([draw, at], tf.int32)


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
            return _pseudo_loss(operator.loss, y, y_pred, weight, seed, outputs)

        batch = (x, y, weight[0] if weight else None)
        return capture(operator.model, surrogate, batch, layers).factors

    blocks: list[Block] = []

    def moments(data, seed):
        pairs = _pairs(captured(data, seed), groups)
        blocks[:] = [block for block, _ in pairs]
        return [_moments(block, factors) for block, factors in pairs]

    def spectra(data, seed, bases):
        pairs = _pairs(captured(data, seed), groups)
        return [
            _spectrum(block, factors, basis)
            for (block, factors), basis in zip(pairs, bases, strict=True)
        ]

    seed_spec = tf.TensorSpec([2], tf.int32)
    first = tf.function(
        moments, autograph=False, input_signature=(operator.spec, seed_spec)
    )
    first.get_concrete_function()
    width = max(outputs)
    draws = width
    if width > _EACH_OUTPUT or len(outputs) > 1:
        count = operator.examples.size or _ENOUGH
        draws = min(max(1, math.ceil(_ENOUGH / count)), _EACH_OUTPUT)
    return _Steps(
        tuple(blocks), draws, first, tf.function(spectra, autograph=False)
    )


def _pseudo_loss(loss, y, y_pred, weight, seed, outputs: list[int]):
    """`v·z` per example, with `E[v vᵀ] = ∂²ℓ/∂z²` and v taken as given."""
    leaves = tf.nest.flatten(y_pred)
    found = None
    if any(hasattr(leaf, "_keras_logits") for leaf in leaves):
        logits = [getattr(leaf, "_keras_logits", leaf) for leaf in leaves]
        found = _curvatures(loss, y, y_pred, leaves, logits, weight, True)
    if found is None:
        logits = leaves
        found = _curvatures(loss, y, y_pred, leaves, logits, weight, False)
    if found is None:
        raise ValueError(
            "The loss has no gradient by the model's outputs. EK-FAC needs "
            "one that can be differentiated twice."
        )
    outputs[:] = [curvature.shape[-1] for curvature in found]
    total, alone = 0.0, len(found) == 1
    for at, (z, curvature) in enumerate(zip(logits, found, strict=True)):
        draw = _draw(curvature, seed + tf.constant([0, 7919 * at]), alone)
        product = tf.stop_gradient(draw) * z
        total += tf.reduce_sum(tf.reshape(product, [tf.shape(z)[0], -1]), 1)
    return total


def _curvatures(loss, y, y_pred, leaves, logits, weight, by_logits: bool):
    """`∂²ℓ/∂z² [n, ..., K, K]` by each output; None without a gradient."""
    options = {"persistent": True, "watch_accessed_variables": False}
    with tf.GradientTape(**options) as outer:
        probes = [tf.identity(tf.stop_gradient(z)) for z in logits]
        outer.watch(probes)
        with tf.GradientTape(**options) as inner:
            inner.watch(probes)
            shown = []
            for leaf, probe in zip(leaves, probes, strict=True):
                value = tf.identity(leaf) if by_logits else probe
                if by_logits and hasattr(leaf, "_keras_logits"):
                    value._keras_logits = probe
                if hasattr(leaf, "_keras_mask"):
                    value._keras_mask = leaf._keras_mask
                shown.append(value)
            outputs = tf.nest.pack_sequence_as(y_pred, shown)
            total = tf.reduce_sum(loss(y, outputs, weight))
        slopes = inner.gradient(total, probes)
    if any(slope is None for slope in slopes):
        return None
    found = []
    for probe, slope in zip(probes, slopes, strict=True):
        width = probe.shape[-1]
        if width > _MOST_OUTPUTS:
            raise ValueError(
                f"EK-FAC writes out the loss's curvature by up to "
                f"{_MOST_OUTPUTS} outputs. Received a model with {width}. Use "
                "curvature='gauss_newton' with `Arnoldi()` or `CG()`."
            )
        rows = [
            outer.gradient(
                slope,
                probe,
                output_gradients=tf.ones_like(probe)
                * tf.one_hot(at, width, dtype=probe.dtype),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            for at in range(width)
        ]
        found.append(tf.stack(rows, axis=-2))
    return found


def _draw(curvature: tf.Tensor, seed: tf.Tensor, alone: bool) -> tf.Tensor:
    """A random v of covariance `curvature [..., K, K]`, `[..., K]`.

    With few outputs v is √K times one column of the root, a different one in
    each of K passes, which together give the covariance exactly.
    """
    width = curvature.shape[-1]
    values, vectors = tf.linalg.eigh(
        (curvature + tf.linalg.matrix_transpose(curvature)) / 2
    )
    root = vectors * tf.sqrt(tf.maximum(values, 0))[..., tf.newaxis, :]
    if alone and width <= _EACH_OUTPUT:
        signs = tf.random.stateless_uniform(
            tf.shape(root)[:-2], seed, 0, 2, tf.int32
        )
        signs = tf.cast(2 * signs - 1, root.dtype)[..., tf.newaxis]
        return math.sqrt(width) * signs * tf.gather(root, seed[0], axis=-1)
    noise = tf.random.stateless_normal(
        tf.shape(root)[:-1], seed, dtype=root.dtype
    )
    return tf.linalg.matvec(root, noise)


def _pairs(
    factors: Sequence[Factors], groups: Groups
) -> list[tuple[Block, Factors]]:
    """Each block of a row, with the factors of its gradients."""
    pairs: list[tuple[Block, Factors]] = []
    start = 0
    for found, variables in zip(factors, groups, strict=True):
        sizes = [size_of(variable) for variable in variables]
        if isinstance(found, OuterFactors):
            _, i, o = found.sizes
            block = Block(start, i + found.bias, o, True)
            if max(block.rows, block.columns) > _LARGEST_SIDE:
                block = Block(start, 1, sum(sizes), False)
            pairs.append((block, found))
            start += sum(sizes)
            continue
        parts = found.parts if isinstance(found, DenseGradients) else [found]
        for part, variable in zip(parts, variables, strict=True):
            size, last = size_of(variable), variable.shape[-1:] or (1,)
            i, o = size // last[0], last[0]
            whole = isinstance(found, DenseGradients) and min(i, o) > 1
            if whole and max(i, o) <= _LARGEST_SIDE:
                block = Block(start, i, o, True)
            else:
                block = Block(start, 1, size, False)
            if isinstance(found, DenseGradients):
                part = DenseGradients((part,))
            pairs.append((block, part))
            start += size
    return pairs


def _moments(block: Block, factors: Factors) -> tuple[tf.Tensor, ...]:
    """What the bases are made of, summed over a batch: A and B."""
    if not block.kronecker:
        return ()
    if isinstance(factors, OuterFactors):
        x = tf.reshape(_with_one(factors), [-1, block.rows])
        delta = tf.reshape(factors.grads, [-1, block.columns])
        return (
            tf.matmul(x, x, transpose_a=True),
            tf.matmul(delta, delta, transpose_a=True),
        )
    whole = _whole(block, factors)
    return (
        tf.einsum("nio,njo->ij", whole, whole),
        tf.einsum("nio,niq->oq", whole, whole),
    )


def _spectrum(block: Block, factors: Factors, basis) -> tf.Tensor:
    """Squares of the gradients in the basis, `[i, o]` summed over a batch."""
    if not block.kronecker:
        return tf.reduce_sum(tf.square(flat.rows((factors,))), 0)[tf.newaxis]
    left, right = basis
    if isinstance(factors, OuterFactors):
        x = tf.einsum("nti,ij->ntj", _with_one(factors), left)
        delta = tf.einsum("nto,oq->ntq", factors.grads, right)
        if factors.sizes[0] == 1:
            x, delta = tf.square(x[:, 0]), tf.square(delta[:, 0])
            return tf.matmul(x, delta, transpose_a=True)
        rotated = tf.matmul(x, delta, transpose_a=True)
    else:
        rotated = _rotate(_whole(block, factors), left, right)
    return tf.reduce_sum(tf.square(rotated), axis=0)


def _with_one(factors: OuterFactors) -> tf.Tensor:
    """The inputs, and one for the bias: its gradient is the last row."""
    if not factors.bias:
        return factors.inputs
    one = tf.ones_like(factors.inputs[..., :1])
    return tf.concat([factors.inputs, one], axis=-1)


def _whole(block: Block, factors: Factors) -> tf.Tensor:
    rows = flat.rows((factors,))
    return tf.reshape(rows, [-1, block.rows, block.columns])


def _rotate(matrices, left, right) -> tf.Tensor:
    """`leftᵀ M right` of each `[i, o]`."""
    return tf.einsum("ij,nio,oq->njq", left, matrices, right)


def _basis(moments, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    left, right = (
        np.linalg.eigh(np.asarray(moment, np.float64))[1] for moment in moments
    )
    return tf.constant(left, dtype), tf.constant(right, dtype)


def _rotated_diagonal(block: Block, basis, diagonal: tf.Tensor) -> tf.Tensor:
    """The diagonal, in the basis, of a matrix that is diagonal outside it."""
    part = diagonal[block.start : block.start + block.size]
    part = tf.reshape(part, [block.rows, block.columns])
    if not block.kronecker:
        return part
    left, right = map(tf.square, basis)
    return tf.matmul(tf.matmul(left, part, transpose_a=True), right)


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
                part = _rotate(part, left, right)
                part = tf.math.divide_no_nan(part, values)
                back = tf.transpose(left), tf.transpose(right)
                part = _rotate(part, *back)
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
