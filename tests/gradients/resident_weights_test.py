"""Sketches at several sets of weights, against putting each into the model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.sketch_steps import sketches, sketches_at
from keras_tracin.engine.steps import GradientFunctions

layers = keras.layers
PROJECTION = kt.TensorSketch(32, seed=1)
ROWS = np.random.default_rng(0).normal(size=(3, 5)).astype("float32")
IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype("float32")
TOKENS = np.random.default_rng(0).integers(0, 7, (3, 4)).astype("int32")


class Squared(layers.Layer):
    """A layer without a rule: the fallback differentiates it."""

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale**2


def adapted():
    layer = layers.Normalization()
    layer.adapt(ROWS)
    return layer


MODELS = {
    "normalization": (ROWS, lambda: [adapted(), layers.Dense(4)]),
    "convolution": (
        IMAGES,
        lambda: [
            layers.Conv2D(3, 3),
            layers.BatchNormalization(),
            layers.Flatten(),
        ],
    ),
    "table": (
        TOKENS,
        lambda: [layers.Embedding(7, 4), layers.GlobalAveragePooling1D()],
    ),
    "fallback": (ROWS, lambda: [layers.Dense(4), Squared()]),
    "float16": (ROWS, lambda: [layers.Dense(4, dtype="mixed_float16")]),
}


def build(x, inside):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(x.shape[1:], dtype=x.dtype.name)
    model = keras.Sequential([inputs, *inside(), layers.Dense(2)])
    model.compile("sgd", "mse")
    return model


def loss(y, y_pred, sample_weight):
    return tf.reduce_sum((tf.cast(y, y_pred.dtype) - y_pred) ** 2, axis=-1)


@pytest.mark.parametrize("name", MODELS)
def test_all_at_once_is_one_after_another(name):
    x, inside = MODELS[name]
    model = build(x, inside)
    y = np.ones((3, 2), "float32")
    functions = GradientFunctions(model, loss, (x, y))
    own = [np.array(weight) for weight in model.get_weights()]
    rng = np.random.default_rng(1)
    sets = [
        [np.abs(w + rng.normal(0, 0.1, w.shape)).astype(w.dtype) for w in own]
        for _ in range(3)
    ]
    held = [[tf.constant(value) for value in weights] for weights in sets]
    found = sketches_at(functions, PROJECTION, held)((x, y)).numpy()
    for old, new in zip(own, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    slow = sketches(functions, PROJECTION)
    for position, weights in enumerate(sets):
        model.set_weights(weights)
        if name == "normalization":
            model.layers[0].finalize_state()
            # Made anew, since a trace keeps what the layer has computed.
            slow = sketches(GradientFunctions(model, loss, (x, y)), PROJECTION)
        expected = slow((x, y), np.int32(position)).numpy()
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[position], expected, atol=1e-5 * scale)
        assert scale > 0
