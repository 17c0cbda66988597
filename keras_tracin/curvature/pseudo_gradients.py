"""Losses whose gradients have the Gauss-Newton curvature as second moments.

For a likelihood, labels drawn from the model would do. Here the gradient by the
outputs z is v = L s, with L Lᵀ = ∂²ℓ/∂z² and random signs s. It has the
covariance that drawn labels give, leaves less to chance, and serves any loss
that is convex in z. L is known where the curvature is

- that of a softmax cross-entropy, w (diag p - p pᵀ), of any number of classes.
  With q = √p and Q the reflection that exchanges q for the likeliest class,
  L is √w diag(q) Q without the column of that class;
- diagonal, as of squared errors or of a sigmoid for each label.

Which of these it is, and w, follow from products of the curvature with two
vectors, so that weights, masks and smoothed labels need no names. Any other
curvature is written out and diagonalised, up to a width.

Synopsis:

    def surrogate(y, y_pred, weight):        # in place of the loss
        return pseudo_loss(loss, y, y_pred, weight, draw, outputs)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import tensorflow as tf

MOST_OUTPUTS = 512  # up to which each example's curvature is written out
_MOST_DRAWS = 2**16  # that have random numbers of their own
_TOLERANCE = 1e-3  # of products, relative to the largest entry
_ROUNDING = 1e-5  # of a sum that is zero, relative to its terms


def pseudo_loss(loss, y, y_pred, weight, draw: tf.Tensor, outputs: list[tuple]):
    """`v·z` of each example, with `E[v vᵀ] = ∂²ℓ/∂z²` and v taken as given.

    It is NaN where the curvature is neither known nor can be written out.

    Args:
        loss: `(y, y_pred, sample_weight) -> [n]`.
        y: the labels.
        y_pred: the model's outputs; z are their logits where Keras knows them.
        weight: the sample weights, or None.
        draw: `[4]`: its number, that of the batch, a seed, and whether it is
            exact. An exact v is √K times a column of the root of `∂²ℓ/∂z²`
            `[K, K]`, a different one in each of K draws, which together have
            the covariance exactly; for models with one output. Any other v is
            the sum of all columns with random signs.
        outputs: takes the width and the number of positions of each output.

    Raises:
        ValueError: if the loss cannot be differentiated by the outputs.
    """
    curvature = _curvature_of(loss, y, y_pred, weight)
    outputs[:] = [_width_and_positions(z) for z in curvature.z]
    total = 0.0
    for at, z in enumerate(curvature.z):
        v = curvature.root_times(at, draw + tf.constant([0, 0, at, 0]))
        product = tf.stop_gradient(v) * z
        total += tf.reduce_sum(tf.reshape(product, [tf.shape(z)[0], -1]), 1)
    return total


def _width_and_positions(z: tf.Tensor) -> tuple[int, int]:
    """Entries of an output at a position, and positions; 1 if not known."""
    if z.shape.rank == 1:
        return 1, 1
    return z.shape[-1], z.shape[1:-1].num_elements() or 1


def is_out_of_reach(loss, y, y_pred, weight) -> tf.Tensor:
    """Whether a batch has outputs by which the curvature cannot be told.

    Args:
        loss: as of `pseudo_loss`.
        y: the labels.
        y_pred: the model's outputs.
        weight: the sample weights, or None.
    """
    curvature = _curvature_of(loss, y, y_pred, weight)
    lost = []
    for at, z in enumerate(curvature.z):
        v = curvature.root_times(at, tf.zeros([4], tf.int32))
        is_real = tf.reduce_all(tf.math.is_finite(z))
        lost.append(is_real & tf.reduce_any(tf.math.is_nan(v)))
    return tf.reduce_any(lost)


def _curvature_of(loss, y, y_pred, weight) -> _Curvature:
    """The curvature by the logits behind the outputs, or by the outputs."""
    leaves = tf.nest.flatten(y_pred)
    ways = [leaves]
    if any(hasattr(leaf, "_keras_logits") for leaf in leaves):
        ways = [[getattr(leaf, "_keras_logits", leaf) for leaf in leaves]]
        ways.append(leaves)
    for z in ways:
        curvature = _Curvature(loss, y, y_pred, weight, z)
        if all(gradient is not None for gradient in curvature.gradients):
            return curvature
    raise ValueError(
        "The loss has no gradient by the model's outputs. EK-FAC needs one "
        "that can be differentiated twice."
    )


class _Curvature:
    """`∂²ℓ/∂z²` of each example of a batch, by products with vectors.

    Args:
        loss: `(y, y_pred, sample_weight) -> [n]`.
        y: the labels.
        y_pred: the model's outputs.
        weight: the sample weights, or None.
        z: what it is the curvature by: the outputs, or the logits of those
            that have any.
    """

    def __init__(self, loss, y, y_pred, weight, z: Sequence[tf.Tensor]):
        self.z = z
        options = {"persistent": True, "watch_accessed_variables": False}
        with tf.GradientTape(**options) as self._tape:
            probes = [tf.identity(tf.stop_gradient(each)) for each in z]
            self._tape.watch(probes)
            with tf.GradientTape(**options) as inner:
                inner.watch(probes)
                leaves = zip(tf.nest.flatten(y_pred), z, probes, strict=True)
                shown = [_show(*leaf) for leaf in leaves]
                outputs = tf.nest.pack_sequence_as(y_pred, shown)
                total = tf.reduce_sum(loss(y, outputs, weight))
            self.gradients = inner.gradient(total, probes)
        self._probes = probes

    def times(self, vectors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The product with a vector, in a part for each output."""
        products = self._tape.gradient(
            self.gradients,
            self._probes,
            output_gradients=vectors,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return [tf.convert_to_tensor(product) for product in products]

    def root_times(self, at: int, draw: tf.Tensor) -> tf.Tensor:
        """A v by one output, of the curvature as covariance.

        Args:
            at: the output's place.
            draw: as of `pseudo_loss`.
        """
        z = self._probes[at]
        parts = [z, *(tensors[at] for tensors in self._trial)]
        if z.shape.rank == 1:
            parts = [part[:, tf.newaxis] for part in parts]
        return tf.reshape(self._root(at, parts, draw), tf.shape(z))

    @functools.cached_property
    def _trial(self) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """A random vector, and the product with it.

        One direction at a length of its own at each position: what mixes
        positions or examples does not look like one that keeps them apart.
        """
        vector = []
        for at, z in enumerate(self._probes):
            shape = tf.shape(z)
            lengths = shape if z.shape.rank == 1 else shape[:-1]
            trial = tf.random.stateless_normal(lengths, [0, at], dtype=z.dtype)
            if z.shape.rank > 1:
                direction = tf.random.stateless_normal(
                    [z.shape[-1]], [1, at], dtype=z.dtype
                )
                trial = trial[..., tf.newaxis] * direction
            vector.append(trial)
        return vector, self.times(vector)

    def _root(self, at: int, parts: list[tf.Tensor], draw) -> tf.Tensor:
        z, trial, image = parts
        signs = _signs(z, draw)
        is_softmax, by_softmax = _softmax_root(z, trial, image, signs)

        def otherwise() -> tf.Tensor:
            ones = [tf.ones_like(probe) for probe in self._probes]
            sums = tf.reshape(self.times(ones)[at], tf.shape(z))
            is_diagonal, by_diagonal = _diagonal_root(trial, image, sums, signs)
            known = tf.where(is_softmax, by_softmax, by_diagonal)
            is_known = tf.logical_or(is_softmax, is_diagonal)

            def written_out() -> tf.Tensor:
                narrow = z.shape[-1] <= MOST_OUTPUTS
                if not narrow or self._probes[at].shape.rank == 1:
                    return tf.where(is_known, known, _nan(z))
                return _dense_root(self._matrices(at), trial, image, signs)

            return tf.cond(tf.reduce_all(is_known), lambda: known, written_out)

        return tf.cond(tf.reduce_all(is_softmax), lambda: by_softmax, otherwise)

    def _matrices(self, at: int) -> tf.Tensor:
        """`[n, ..., K, K]` by one output, positions apart."""
        z = self._probes[at]

        def row(unit):
            units = [tf.zeros_like(probe) for probe in self._probes]
            units[at] += unit
            return self.times(units)[at]

        rows = tf.map_fn(row, tf.eye(z.shape[-1], dtype=z.dtype))
        last = rows.shape.rank
        return tf.transpose(rows, [*range(1, last - 1), 0, last - 1])


def _show(leaf: tf.Tensor, z: tf.Tensor, probe: tf.Tensor) -> tf.Tensor:
    """An output as the loss is to see it, made of a probe in z's place."""
    if z is leaf:
        value = probe
    else:
        value = tf.identity(leaf)
        value._keras_logits = probe
    if hasattr(leaf, "_keras_mask"):
        value._keras_mask = leaf._keras_mask
    return value


def _signs(z: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    """What the root is multiplied with: random signs, all or √K times one."""
    number, batch, seed, exact = tf.unstack(draw)
    bits = tf.random.stateless_uniform(
        tf.shape(z),
        tf.stack([number + _MOST_DRAWS * seed, batch]),
        0,
        2,
        tf.int32,
    )
    width = z.shape[-1]
    column = math.sqrt(width) * tf.one_hot(number, width, dtype=z.dtype)
    weights = tf.where(exact > 0, column, tf.ones_like(column))
    return tf.cast(2 * bits - 1, z.dtype) * weights


def _softmax_root(z, trial, image, signs) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the curvature is w (diag p - p pᵀ), and there its root × signs.

    The likeliest class is left out of w, since of an almost certain one the
    product has no digit that is right.

    Args:
        z: logits `[..., K]`.
        trial: a vector, `[..., K]`.
        image: the curvature's product with it.
        signs: `[..., K]`.

    Returns:
        Booleans `[..., 1]`, and `[..., K]`.
    """
    p = tf.nn.softmax(z)
    expected = p * (trial - _sum(p * trial))
    top = tf.one_hot(tf.argmax(z, -1), z.shape[-1], dtype=z.dtype)
    scale = _largest((1 - top) * expected)
    expected = tf.math.divide_no_nan((1 - top) * expected, scale)
    found = tf.math.divide_no_nan((1 - top) * image, scale)
    w = tf.math.divide_no_nan(_sum(found * expected), _sum(tf.square(expected)))
    differs = _largest(found - w * expected) > _TOLERANCE * w
    rest = _TOLERANCE * _sum(tf.abs(image)) + _ROUNDING * w * _largest(trial)
    is_softmax = ~differs & (tf.abs(_sum(image)) <= rest)
    root = tf.sqrt(p)
    terms = (1 - top) * root * signs
    total = _sum(terms)
    highest = _sum(top * root)
    value = terms - (1 - top) * p * total / (1 + highest) - top * root * total
    return is_softmax, tf.sqrt(tf.maximum(w, 0)) * value


def _diagonal_root(trial, image, sums, signs) -> tuple[tf.Tensor, tf.Tensor]:
    """Where the curvature is diagonal, and there its root × signs.

    Args:
        trial: a vector, `[..., K]`.
        image: the curvature's product with it.
        sums: its product with ones.
        signs: `[..., K]`.
    """
    error = _largest(image - sums * trial)
    is_diagonal = error <= _TOLERANCE * _largest(sums * trial)
    return is_diagonal, tf.sqrt(tf.maximum(sums, 0)) * signs


def _dense_root(matrices, trial, image, signs) -> tf.Tensor:
    """The root of `matrices [..., K, K]` × signs.

    NaN where the curvature has more than these, as between positions.
    """
    error = _largest(tf.linalg.matvec(matrices, trial) - image)
    is_all = error <= _TOLERANCE * _largest(image)
    values, vectors = tf.linalg.eigh(
        (matrices + tf.linalg.matrix_transpose(matrices)) / 2
    )
    root = vectors * tf.sqrt(tf.maximum(values, 0))[..., tf.newaxis, :]
    return tf.where(is_all, tf.linalg.matvec(root, signs), _nan(trial))


def _nan(like: tf.Tensor) -> tf.Tensor:
    return tf.constant(math.nan, like.dtype)


def _sum(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(values, -1, keepdims=True)


def _largest(values: tf.Tensor) -> tf.Tensor:
    return tf.reduce_max(tf.abs(values), -1, keepdims=True)
