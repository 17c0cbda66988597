"""Losses whose gradients have the Gauss-Newton curvature as second moments.

For a likelihood, labels drawn from the model would do. Here the gradient by the
outputs z is drawn with the covariance `∂²ℓ/∂z²`, as such labels have it in
expectation; this serves any loss that is convex in z.

Synopsis:

    def surrogate(y, y_pred, weight):        # in place of the loss
        return pseudo_loss(loss, y, y_pred, weight, draw, outputs)
"""

from __future__ import annotations

import math

import tensorflow as tf

_MOST_OUTPUTS = 512  # up to which each example's curvature is written out
_MOST_DRAWS = 2**16  # that have random numbers of their own


def pseudo_loss(loss, y, y_pred, weight, draw: tf.Tensor, outputs: list[int]):
    """`v·z` of each example, with `E[v vᵀ] = ∂²ℓ/∂z²` and v taken as given.

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
        outputs: takes the width of each output.

    Raises:
        ValueError: if the loss cannot be differentiated by the outputs, or one
            of these has more than 512 entries.
    """
    leaves = tf.nest.flatten(y_pred)
    curvatures = None
    if any(hasattr(leaf, "_keras_logits") for leaf in leaves):
        logits = [getattr(leaf, "_keras_logits", leaf) for leaf in leaves]
        curvatures = _curvatures(loss, y, y_pred, leaves, logits, weight, True)
    if curvatures is None:
        logits = leaves
        curvatures = _curvatures(loss, y, y_pred, leaves, logits, weight, False)
    if curvatures is None:
        raise ValueError(
            "The loss has no gradient by the model's outputs. EK-FAC needs "
            "one that can be differentiated twice."
        )
    outputs[:] = [curvature.shape[-1] for curvature in curvatures]
    total = 0.0
    for at, (z, curvature) in enumerate(zip(logits, curvatures, strict=True)):
        v = _pseudo_gradient(curvature, draw + tf.constant([0, 0, at, 0]))
        product = tf.stop_gradient(v) * z
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
        gradients = inner.gradient(total, probes)
    if any(gradient is None for gradient in gradients):
        return None
    curvatures = []
    for probe, gradient in zip(probes, gradients, strict=True):
        width = probe.shape[-1]
        if width > _MOST_OUTPUTS:
            raise ValueError(
                f"EK-FAC writes out the loss's curvature by up to "
                f"{_MOST_OUTPUTS} outputs. Received a model with {width}. Use "
                "curvature='gauss_newton' with `Arnoldi()` or `CG()`."
            )
        rows = [
            outer.gradient(
                gradient,
                probe,
                output_gradients=tf.ones_like(probe)
                * tf.one_hot(at, width, dtype=probe.dtype),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            for at in range(width)
        ]
        curvatures.append(tf.stack(rows, axis=-2))
    return curvatures


def _pseudo_gradient(curvature: tf.Tensor, draw: tf.Tensor) -> tf.Tensor:
    """A v of covariance `curvature [..., K, K]`, `[..., K]`."""
    width = curvature.shape[-1]
    values, vectors = tf.linalg.eigh(
        (curvature + tf.linalg.matrix_transpose(curvature)) / 2
    )
    root = vectors * tf.sqrt(tf.maximum(values, 0))[..., tf.newaxis, :]
    number, batch, seed, exact = tf.unstack(draw)
    signs = tf.random.stateless_uniform(
        tf.shape(root)[:-1],
        tf.stack([number + _MOST_DRAWS * seed, batch]),
        0,
        2,
        tf.int32,
    )
    signs = tf.cast(2 * signs - 1, root.dtype)
    column = math.sqrt(width) * tf.one_hot(number, width, dtype=root.dtype)
    weights = tf.where(exact > 0, column, tf.ones_like(column))
    return tf.linalg.matvec(root, signs * weights)
