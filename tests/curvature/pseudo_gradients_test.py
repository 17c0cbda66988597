"""Pseudo-gradients against second derivatives written out."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.curvature.pseudo_gradients import pseudo_loss

COUNT, WIDTH = 3, 5


def covariance(loss, y, z, weight=None, *, logits=None):
    """The mean of v vᵀ over all exact draws, `[n, ..., K, K]`."""
    total = 0.0
    for number in range(z.shape[-1]):
        with tf.GradientTape() as tape:
            outputs = tf.identity(z) if logits is None else tf.nn.softmax(z)
            by = outputs
            if logits is not None:
                outputs._keras_logits = by = tf.identity(z)
            tape.watch(by)
            draw = tf.constant([number, 7, 0, 1])
            value = pseudo_loss(loss, y, outputs, weight, draw, [])
        v = tape.gradient(value, by).numpy()
        total = total + v[..., :, np.newaxis] * v[..., np.newaxis, :]
    return total / z.shape[-1]


def hessian(loss, y, z, weight=None):
    """Second derivatives of each position's own outputs, `[n, ..., K, K]`."""
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(z)
        with tf.GradientTape() as inner:
            inner.watch(z)
            total = tf.reduce_sum(loss(y, z, weight))
        gradient = inner.gradient(total, z)
    whole = outer.jacobian(gradient, z, experimental_use_pfor=False).numpy()
    size = int(np.prod(z.shape[:-1]))
    whole = whole.reshape(size, z.shape[-1], size, z.shape[-1])
    own = whole[np.arange(size), :, np.arange(size)]
    return own.reshape(*z.shape, z.shape[-1])


def weighted(keras_loss):
    """`(y, y_pred, sample_weight) -> [n]` of a loss without a reduction."""
    keras_loss.reduction = None

    def loss(y, y_pred, weight):
        values = keras_loss(y, y_pred, sample_weight=weight)
        return tf.reduce_sum(tf.reshape(values, [tf.shape(values)[0], -1]), 1)

    return loss


def sparse(rng, *shape):
    return rng.integers(WIDTH, size=shape)


def one_hot(rng, *shape):
    return np.eye(WIDTH)[sparse(rng, *shape)]


def numbers(rng, *shape):
    return rng.uniform(0.1, 2, size=(*shape, WIDTH))


def labels(rng, *shape):
    return rng.integers(2, size=(*shape, WIDTH)).astype(float)


def _of_the_largest(y, y_pred, weight):
    """Convex, neither of a softmax nor diagonal."""
    return tf.reduce_sum(tf.square(tf.nn.softmax(y_pred) - y), -1) + (
        tf.square(tf.reduce_sum(y_pred, -1))
    )


def _losses():
    names = keras.losses
    double = {"dtype": "float64"}
    logits = {"from_logits": True, **double}
    return {
        "sparse": (names.SparseCategoricalCrossentropy(**logits), sparse),
        "ignored": (
            names.SparseCategoricalCrossentropy(ignore_class=1, **logits),
            sparse,
        ),
        "smoothed": (
            names.CategoricalCrossentropy(label_smoothing=0.2, **logits),
            one_hot,
        ),
        "squared": (names.MeanSquaredError(**double), numbers),
        "labels": (names.BinaryCrossentropy(**logits), labels),
        "huber": (names.Huber(**double), numbers),
    }


@pytest.mark.parametrize("name", _losses())
@pytest.mark.parametrize("shape", [(COUNT,), (COUNT, 4)], ids=["one", "many"])
def test_exact_draws_have_the_curvature_as_covariance(name, shape):
    keras_loss, targets = _losses()[name]
    rng = np.random.default_rng(0)
    z = tf.constant(rng.normal(size=(*shape, WIDTH)))
    y = tf.constant(targets(rng, *shape))
    weight = tf.constant(rng.uniform(size=shape))
    weight = tf.where(weight < 0.3, 0.0, weight)  # as of padding
    loss = weighted(keras_loss)
    expected = hessian(loss, y, z, weight)
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(
        covariance(loss, y, z, weight), expected, atol=1e-9
    )


def test_any_other_convex_loss_is_written_out():
    rng = np.random.default_rng(0)
    z = tf.constant(0.1 * rng.normal(size=(COUNT, WIDTH)))
    y = tf.constant(np.full((COUNT, WIDTH), 1 / WIDTH))
    expected = hessian(_of_the_largest, y, z)
    assert np.linalg.eigvalsh(expected).min() > 0
    np.testing.assert_allclose(
        covariance(_of_the_largest, y, z), expected, atol=1e-9
    )


def test_probabilities_are_taken_by_their_logits():
    rng = np.random.default_rng(0)
    z = tf.constant(rng.normal(size=(COUNT, WIDTH)), tf.float32)
    y = tf.constant(sparse(rng, COUNT))
    keras_loss = keras.losses.SparseCategoricalCrossentropy()
    p = tf.nn.softmax(z).numpy()
    expected = p[:, :, np.newaxis] * (np.eye(WIDTH) - p[:, np.newaxis])
    actual = covariance(weighted(keras_loss), y, z, logits=True)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.parametrize("lead", [5.0, 20.0, 60.0])
def test_a_class_that_is_almost_certain_leaves_the_others_their_curvature(lead):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(COUNT, WIDTH))
    z[:, 2] += lead
    weight = np.array([1.0, 0.3, 2.0])
    y = tf.constant(sparse(rng, COUNT))
    keras_loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    exact = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    bends = exact[:, :, np.newaxis] * (np.eye(WIDTH) - exact[:, np.newaxis])
    expected = weight[:, np.newaxis, np.newaxis] * bends
    actual = covariance(
        weighted(keras_loss),
        y,
        tf.constant(z, tf.float32),
        tf.constant(weight, tf.float32),
    )
    others = np.ix_(range(COUNT), [0, 1, 3, 4], [0, 1, 3, 4])
    np.testing.assert_allclose(
        np.diagonal(actual[others], axis1=1, axis2=2),
        np.diagonal(expected[others], axis1=1, axis2=2),
        rtol=1e-3,
    )


@pytest.mark.parametrize("axis", [0, 1], ids=["examples", "positions"])
def test_a_loss_that_mixes_positions_or_examples_has_none(axis):
    rng = np.random.default_rng(0)
    z = tf.constant(rng.normal(size=(COUNT, 4, WIDTH)))

    def loss(y, y_pred, weight):
        total = tf.reduce_sum(y_pred, axis=axis, keepdims=True)
        return tf.reduce_sum(tf.square(total) + 0 * y_pred, axis=[1, 2])

    assert np.isnan(covariance(loss, None, z)).all()


def test_an_output_may_be_one_number_without_an_axis():
    z = tf.constant([0.5, -1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(z)
        value = pseudo_loss(
            lambda y, y_pred, weight: 3 * tf.square(y_pred - y),
            tf.zeros([3]),
            z,
            None,
            tf.constant([0, 0, 0, 1]),
            outputs := [],
        )
    np.testing.assert_allclose(tape.gradient(value, z) ** 2, [6, 6, 6])
    assert outputs == [(1, 1)]  # its width and positions
