"""A part of a model that mixes the examples of a batch is found by name."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients.interaction import find_interaction
from keras_tracin.losses.per_example import per_example_loss

layers, ops = keras.layers, keras.ops


class Centred(layers.Layer):
    """Subtracts the batch's mean, as BatchNormalization does in training."""

    def call(self, x):
        return x - ops.mean(x, axis=0)


class Nesting(layers.Layer):
    """Two layers, and a mean over the batch between them."""

    def __init__(self, mixes, **options):
        super().__init__(**options)
        self.first, self.second = layers.Dense(5), layers.Dense(5)
        self.mixes = mixes

    def call(self, x):
        x = self.first(x)
        x = x + ops.max(x, axis=0) if self.mixes else x
        return self.second(x)


class AlwaysTraining(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inside = layers.BatchNormalization(name="statistics")

    def call(self, x):
        return self.inside(x, training=True)


class Noisy(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.seeds = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="subclassed")
        self.first, self.second = layers.Dense(5), layers.Dense(3)

    def call(self, x):
        x = self.first(x)
        return self.second(x / ops.cast(ops.shape(x)[0], "float32"))


def sequential(*inside, inputs=6):
    return keras.Sequential(
        [keras.Input((inputs,)), layers.Dense(5), *inside, layers.Dense(3)]
    )


def functional():
    inputs = keras.Input((6,))
    x = layers.Dense(5)(inputs)
    x = x - ops.mean(x, axis=0, keepdims=True)
    return keras.Model(inputs, layers.Dense(3)(x))


def find(model, loss="mse", count=7, x=None):
    rng = np.random.default_rng(0)
    if x is None:
        x = rng.normal(size=(count, 6)).astype("float32")
    y = rng.normal(size=(len(x), 3)).astype("float32")
    model.compile(loss=loss)
    if not model.built:
        model(x)
    return find_interaction(model, per_example_loss(model), (x, y))


MIXING = {
    "a layer": (
        lambda: sequential(Centred(name="centred")),
        r"Layer 'sequential.*/centred' \(Centred\)",
    ),
    "within a layer": (
        lambda: sequential(Nesting(True, name="nest")),
        r"Layer 'sequential.*/nest' \(Nesting\)",
    ),
    "a layer in a model": (
        lambda: sequential(sequential(Centred(name="inner"), inputs=5)),
        r"Layer '.*/inner' \(Centred\)",
    ),
    "an operation": (functional, r"Operation 'mean.*' \(Mean\)"),
    "a model's call": (Subclassed, "The call of model 'subclassed' itself"),
    "batch statistics": (
        lambda: sequential(AlwaysTraining()),
        r"Layer '.*/statistics' \(BatchNormalization\)",
    ),
}


@pytest.mark.parametrize(("build", "name"), MIXING.values(), ids=MIXING)
def test_what_mixes_examples_is_named(build, name):
    found = find(build())
    assert not found.is_random
    assert re.match(name, found.where)
    assert "mixes the examples" in str(found)


def test_a_loss_that_mixes_examples_is_named():
    def centred(y_true, y_pred):
        values = ops.mean(ops.square(y_pred - y_true), axis=-1)
        return values - ops.mean(values)

    assert find(sequential(), centred).where == "The loss"


def test_a_layer_that_is_random_in_inference_mode_is_named():
    model = sequential(Noisy(name="noisy"))
    found = find(model)
    assert found.is_random
    assert found.where == f"Layer '{model.name}/noisy' (Noisy)"
    assert "random numbers" in str(found)


INDEPENDENT = {
    "statistics from training": lambda: sequential(
        layers.BatchNormalization(), layers.Dropout(0.5)
    ),
    "noise in training": lambda: sequential(layers.GaussianNoise(1.0)),
    "a nested layer": lambda: sequential(Nesting(False)),
    "recurrence": lambda: sequential(layers.Reshape((5, 1)), layers.LSTM(4)),
    "an example's own statistics": lambda: sequential(
        layers.LayerNormalization()
    ),
}


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("statistics from training", "float64"),
        ("statistics from training", "mixed_bfloat16"),
        ("noise in training", "float32"),
        ("a nested layer", "mixed_bfloat16"),
        ("recurrence", "float32"),
        ("recurrence", "mixed_bfloat16"),
        ("an example's own statistics", "float32"),
        ("an example's own statistics", "mixed_bfloat16"),
    ],
)
def test_examples_that_keep_to_themselves_are_left_alone(name, policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = INDEPENDENT[name]()
    finally:
        keras.config.set_dtype_policy(before)
    assert find(model) is None


@pytest.mark.parametrize("policy", ["mixed_float16", "float64"])
def test_mixing_is_seen_in_every_precision(policy):
    model = sequential(Centred(name="centred", dtype=policy))
    assert "centred" in find(model).where


def test_a_single_example_cannot_tell():
    assert find(sequential(Centred()), count=1) is None


def test_nan_in_one_example_is_no_interaction():
    x = np.ones((4, 6), "float32")
    for row in (0, 2):
        broken = x.copy()
        broken[row] = np.nan
        assert find(sequential(), x=broken) is None


def test_the_layers_are_left_as_they_were():
    model = sequential(Centred())
    assert find(model) is not None
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)
    model = functional()
    assert find(model) is not None
    for operation in model.operations:
        assert "call" not in vars(operation)


def test_the_tables_of_models_compute_something():
    x = tf.random.stateless_normal((3, 6), [0, 1])
    for build, _ in MIXING.values():
        assert build()(x).shape == (3, 3)
