"""What takes the loss for a function of the outputs refuses another."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_tracin as kt
from tests.error_rows import row


def model_and_data():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(3, activation="tanh", name="hidden"),
            layers.Dense(2, name="head"),
        ]
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype("float32")
    y = rng.integers(0, 2, size=8)

    def loss(y, y_pred):
        values = keras.losses.sparse_categorical_crossentropy(
            y, y_pred, from_logits=True
        )
        back = ops.matmul(y_pred, ops.transpose(model.layers[1].kernel))
        return values + 0.5 * ops.sum(back**2, -1)

    model.compile("sgd", loss)
    return model, (x, y)


def test_gauss_newton_and_ekfac_refuse_a_loss_that_reads_weights():
    model, data = model_and_data()
    for curvature in ("gauss_newton", "ekfac"):
        method = kt.InfluenceFunctions(
            model, data, damping=1.0, curvature=curvature
        )
        with pytest.raises(
            ValueError, match=row("loss-of-weights", "head/kernel...'hessian'")
        ):
            method.influence(data, verbose=0)


def test_representer_points_refuse_a_loss_that_reads_weights():
    model, data = model_and_data()
    with pytest.raises(
        ValueError,
        match=row("loss-of-weights", "Representer points...head/kernel"),
    ):
        kt.RepresenterPoints(model, data).influence(data, verbose=0)


def test_hessian_counts_what_the_loss_reads():
    model, data = model_and_data()
    scores = kt.InfluenceFunctions(
        model, data, damping=1.0, curvature="hessian", solver=kt.Exact()
    ).influence(data, verbose=0)
    expected = exact_influence(model, data, damping=1.0)
    np.testing.assert_allclose(scores.scores, expected, rtol=1e-3, atol=1e-4)


def exact_influence(model, data, damping):
    """∇ℓ(z')ᵀ (H + λI)⁻¹ ∇ℓ(z) by Jacobians."""
    x, y = data
    values = [v.value for v in model.trainable_variables]
    with tf.GradientTape(persistent=True) as outer:
        with tf.GradientTape(persistent=True) as inner:
            losses = model.loss(y, model(x))
            mean = tf.reduce_mean(losses)
        grads = inner.gradient(mean, values)
    blocks = [
        [
            np.reshape(part, (np.prod(v.shape), -1))
            for part in outer.jacobian(
                grad, values, unconnected_gradients="zero"
            )
        ]
        for v, grad in zip(values, grads, strict=True)
    ]
    hessian = np.block(blocks).astype("float64")
    rows = np.concatenate(
        [
            np.reshape(part, (len(y), -1))
            for part in inner.jacobian(losses, values)
        ],
        axis=1,
    ).astype("float64")
    inverse = np.linalg.inv(hessian + damping * np.eye(len(hessian)))
    return rows @ inverse @ rows.T
