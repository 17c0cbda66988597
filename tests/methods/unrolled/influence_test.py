"""Unrolled scores against differences of real trainings in float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.methods.unrolled.helpers import (
    QUERIES,
    Retrained,
    X,
    Y,
    make_model,
    recorded,
)

optimizers = keras.optimizers
DECAYING = optimizers.schedules.ExponentialDecay(0.3, 4, 0.5)
CASES = {
    "sgd": lambda: optimizers.SGD(0.3),
    "schedule": lambda: optimizers.SGD(DECAYING, clipvalue=0.02),
    "momentum": lambda: optimizers.SGD(0.1, momentum=0.8, weight_decay=0.1),
    "nesterov": lambda: optimizers.SGD(
        0.1, momentum=0.8, nesterov=True, clipnorm=0.1
    ),
    "adam": lambda: optimizers.Adam(0.03),
    "adamw": lambda: optimizers.AdamW(0.03, weight_decay=0.2),
    "amsgrad": lambda: optimizers.Adam(
        0.03, amsgrad=True, beta_2=0.8, global_clipnorm=0.2
    ),
    "rmsprop": lambda: optimizers.RMSprop(0.02),
    "centered": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adagrad": lambda: optimizers.Adagrad(0.1),
}


@pytest.fixture(autouse=True)
def double():
    """Keras computes losses, too, in float64 here."""
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_dtype_policy(before[1])


DIRECTIONS = np.random.default_rng(5).normal(size=(3, len(X)))


@pytest.mark.parametrize("name", CASES)
def test_scores_are_the_derivative_of_training(name, tmp_path):
    def make():
        return make_model(CASES[name](), hidden=name != "schedule")

    unrolled = recorded(make(), tmp_path)
    scores = unrolled.influence(QUERIES, verbose=0)
    assert scores.scores.dtype == np.float64
    np.testing.assert_array_equal(scores.train_ids, np.arange(30))
    oracle = Retrained(make, unrolled._recorded.steps.rows)
    for direction in DIRECTIONS:
        np.testing.assert_allclose(
            -scores.scores @ direction,
            oracle.derivative(direction),
            rtol=1e-5,
            atol=1e-7,
        )
    assert np.abs(scores.scores).max() > 1e-3
    # Its own steps are Keras's.
    np.testing.assert_allclose(
        unrolled.retrain(QUERIES, np.ones(30)),
        oracle.losses(np.ones(30)),
        rtol=1e-8,
    )
    assert unrolled.replay_error < 1e-7


def test_one_step_is_the_product_of_jacobians(tmp_path):
    """No Hessian yet: η/b ∇ℓ(w_0, z)·∇ℓ(w_1, z')."""
    model = make_model(optimizers.SGD(0.5), decay=0.0)
    start = model.get_weights()
    unrolled = recorded(model, tmp_path, epochs=1, batch_size=30)

    def jacobian(x, y):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(x))
        found = tape.jacobian(losses, [v.value for v in model.weights])
        return np.concatenate([np.reshape(j, [len(y), -1]) for j in found], 1)

    queries = jacobian(*QUERIES)
    model.set_weights(start)
    np.testing.assert_allclose(
        unrolled.influence(QUERIES, verbose=0).scores,
        0.5 / 30 * queries @ jacobian(X, Y).T,
        atol=1e-12,
    )


def test_without_curvature_it_is_tracin(tmp_path):
    """A loss that is linear in the weights has the same gradient throughout."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(
        optimizers.SGD(0.1), lambda y, out: -keras.ops.mean(y * out, axis=-1)
    )
    data = X[:24], Y[:24, np.newaxis] - 1.0
    unrolled = recorded(model, tmp_path, data)  # batches of 8, none shorter
    queries = QUERIES[0], QUERIES[1][:, np.newaxis] - 1.0
    expected = kt.TracIn(model, data, tmp_path).influence(queries, verbose=0)
    found = unrolled.influence(queries, verbose=0)
    assert np.abs(expected.scores).max() > 0.01
    np.testing.assert_allclose(found.scores * 8, expected.scores, atol=1e-6)
