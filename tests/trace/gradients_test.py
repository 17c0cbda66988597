"""Gradients of a step's examples against the Jacobian of training mode."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.engine.steps import batch_spec
from keras_tracin.gradients import flat
from keras_tracin.losses.per_example import batch_shares
from keras_tracin.trace.gradients import StepGradients
from tests.trace.helpers import LOSS, X, Y, make_model

BATCH = (X[:6], Y[:6])
DROPOUT = keras.layers.Dropout(0.5, seed=1)
NOISE = keras.layers.GaussianNoise(0.5, seed=2)
BATCH_NORM = keras.layers.BatchNormalization()


def rows_and_total(model):
    """All gradients `[n, p]` by `StepGradients`, and their sum."""
    gradients = StepGradients(model, batch_spec(BATCH))

    @tf.function(autograph=False, input_signature=[batch_spec(BATCH)])
    def step(data):
        captured = gradients.capture(data)
        total = [part for _, part in gradients.total(captured)]
        return flat.rows(captured.factors), tf.concat(total, axis=0)

    rows, total = step(BATCH)
    return gradients, rows.numpy(), total.numpy()


def oracle(model, training):
    """The Jacobian of the batch's shares, the seeds put back."""
    before = [(v, v.numpy()) for v in model.variables]
    with tf.GradientTape() as tape:
        y_pred = model(BATCH[0], training=training)
        shares = batch_shares(model)(BATCH[1], y_pred, None)
    jacobian = tape.jacobian(shares, [v.value for v in model.trainable_weights])
    for variable, value in before:
        variable.assign(value)
    return np.concatenate([np.reshape(j, [6, -1]) for j in jacobian], axis=1)


@pytest.mark.parametrize("layer", [DROPOUT, NOISE], ids=lambda one: one.name)
def test_what_is_drawn_in_training_is_replayed_and_the_seeds_put_back(layer):
    model = make_model("sgd", layer)
    expected = oracle(model, training=True)
    gradients, rows, total = rows_and_total(model)
    assert not gradients.inference_layers
    assert np.abs(expected - oracle(model, training=False)).max() > 1e-3
    for _ in range(2):
        np.testing.assert_allclose(rows, expected, atol=1e-6)
        _, rows, _ = rows_and_total(model)
    np.testing.assert_allclose(total, expected.sum(axis=0), atol=1e-6)


def test_layers_that_mix_examples_stay_in_inference_mode():
    model = make_model("sgd", BATCH_NORM)
    model.layers[1].moving_mean.assign(np.linspace(-1, 1, 6))
    statistics = model.layers[1].moving_mean.numpy()
    gradients, rows, _ = rows_and_total(model)
    assert gradients.inference_layers == [model.layers[1]]
    np.testing.assert_allclose(rows, oracle(model, False), atol=1e-6)
    np.testing.assert_array_equal(
        model.layers[1].moving_mean.numpy(), statistics
    )
    assert "call" not in vars(model.layers[1])


class Block(keras.layers.Layer):
    """Weights of its own, a Dropout inside, and no rule."""

    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")
        self.dropout = keras.layers.Dropout(0.5, seed=3)

    def call(self, inputs):
        return self.dropout(inputs * self.scale)


def test_layers_without_a_rule_stay_in_inference_mode_with_all_inside():
    model = make_model("sgd", Block(name="block"))
    gradients, rows, _ = rows_and_total(model)
    assert gradients.inference_layers == [model.layers[1]]
    expected = oracle(model, training=False)
    assert np.abs(expected - oracle(model, training=True)).max() > 1e-3
    np.testing.assert_allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_recurrent_layers_stay_in_inference_mode_only_if_they_drop(dropout):
    model = keras.Sequential(
        [keras.Input((3, 4)), keras.layers.LSTM(2, dropout=dropout)]
    )
    model.compile("sgd", LOSS)
    spec = batch_spec((np.zeros((2, 3, 4), "float32"), np.zeros(2, "int64")))
    assert bool(StepGradients(model, spec).inference_layers) == bool(dropout)
