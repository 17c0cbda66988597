"""Half precision, against Jacobians in float64 at the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.engine.diagnosis import first_not_finite
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import precision as module
from keras_tracin.gradients.factors import squared_norm
from keras_tracin.gradients.graphs import has_loops
from keras_tracin.losses.per_example import per_example_loss
from tests.gradients.oracle import (
    jacobian,
    precision,
    randomize,
    sequential,
    uneven_loss,
)

RATE = tf.constant(1.0)
# Half the distance between 1 and the next number. Every layer rounds what goes
# in and what comes back, twice for each side of a product: twenty-four of
# them for the six layers here. Weights and inputs are numbers that every format
# has, so that they are the same for all. float64 is held to the tolerance of
# the layer rules.
ROUNDING = {
    "mixed_float16": 2.0**-11,
    "float16": 2.0**-11,
    "mixed_bfloat16": 2.0**-8,
    "bfloat16": 2.0**-8,
    "float64": 1e-9 / 24,
}
# What examples weigh: many orders of magnitude in one batch.
UNEVEN = np.array([1.0, 1e-4, 1e-9, 1e4, 0.0])


class Slopes(keras.Layer):
    """A user's layer, which takes the layer-local fallback."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=input_shape[-1:], name="scale")

    def call(self, inputs):
        return keras.ops.tanh(inputs * self.scale)


def mixed_model(last="float32"):
    return sequential(
        (6, 6, 2),
        layers.Conv2D(4, 3, activation="tanh"),
        layers.BatchNormalization(),
        layers.Reshape((16, 4)),
        Slopes(),
        layers.LayerNormalization(),
        layers.Flatten(),
        layers.Dense(3, dtype=last),
    )


def loss(y, y_pred, weight):
    """Steep losses would tell rounding errors of the outputs from none."""
    return uneven_loss(y, 0.25 * y_pred, weight)


def short(array):
    """The nearest numbers with 8 bits, which all formats share."""
    return np.array(tf.cast(tf.cast(array, tf.bfloat16), array.dtype))


def data(weights, shape=(6, 6, 2), dtype="float32"):
    rng = np.random.default_rng(0)
    x = short(rng.normal(size=(len(weights), *shape))).astype(dtype)
    y = rng.normal(size=len(weights)).astype("float32").astype(dtype)
    return x, y, np.asarray(weights, "float32").astype(dtype)


def in_float64(build, batch):
    """The weights of a model, and each example's gradient `[n, p]`."""
    with precision("float64"):
        keras.utils.set_random_seed(0)
        model = build()
        randomize(model)
        model.set_weights([short(value) for value in model.get_weights()])
        batch = tuple(array.astype("float64") for array in batch)
        rows = jacobian(model, batch, model.trainable_variables, loss)
    return model.get_weights(), rows


def functions_at(policy, build, weights, batch):
    with precision("float64" if policy == "float64" else "float32"):
        keras.config.set_dtype_policy(policy)
        model = build()
        model.set_weights(weights)
        return GradientFunctions(model, loss, like=batch)


def scores(functions, batch):
    """All products of the batch's examples, and their squared norms."""
    factors = functions.captured(batch).factors
    products = functions.products(batch, factors, RATE).numpy()
    return products, functions.squared_norms(batch, RATE).numpy()


@pytest.fixture(scope="module")
def truth():
    return in_float64(lambda: mixed_model("float64"), data(UNEVEN))


@pytest.mark.parametrize("policy", ROUNDING)
def test_scores_are_as_good_as_the_precision_allows(policy, truth):
    last = "float64" if policy == "float64" else "float32"
    batch = data(UNEVEN, dtype=last)
    weights, rows = truth
    functions = functions_at(policy, lambda: mixed_model(last), weights, batch)
    found, norms = scores(functions, batch)
    assert found.dtype == last
    lengths = np.linalg.norm(rows, axis=1)
    scale = np.outer(lengths, lengths)
    seen = np.ix_(UNEVEN > 0, UNEVEN > 0)
    error = np.abs(found - rows @ rows.T)[seen] / scale[seen]
    assert error.max() < 24 * ROUNDING[policy]
    assert np.all(norms[UNEVEN > 0] > 0)
    np.testing.assert_allclose(norms, np.diag(found), rtol=1e-5)
    assert norms[-1] == 0  # a weight of zero is no gradient, and no NaN


def test_scales_do_not_depend_on_the_rest_of_the_batch(truth):
    batch = data(UNEVEN)
    functions = functions_at("mixed_float16", mixed_model, truth[0], batch)
    whole = functions.squared_norms(batch, RATE)
    for i in range(len(UNEVEN)):
        alone = tuple(array[i : i + 1] for array in batch)
        np.testing.assert_allclose(
            functions.squared_norms(alone, RATE)[0], whole[i], rtol=1e-6
        )


def small_model(*inside, last="float32"):
    return sequential(
        (4,),
        layers.Dense(8, activation="tanh"),
        *inside,
        layers.Dense(3, dtype=last),
    )


def test_without_scaling_small_gradients_would_all_be_zero(monkeypatch):
    batch = data([1e-9, 1e-8, 1e-10], (4,))
    weights, rows = in_float64(lambda: small_model(last="float64"), batch)
    expected = np.sum(rows**2, axis=1)

    def squared_norms():
        functions = functions_at("mixed_float16", small_model, weights, batch)
        first = functions.captured(batch).factors[0]  # all in float16
        return squared_norm(first), functions.squared_norms(batch, RATE)

    _, norms = squared_norms()
    np.testing.assert_allclose(norms, expected, rtol=0.01)
    monkeypatch.setattr(module, "computes_in_float16", lambda layer: False)
    first, norms = squared_norms()
    np.testing.assert_array_equal(first, 0)
    assert np.all(norms < expected / 2)


def relative_errors(functions, batch, rows):
    products, norms = scores(functions, batch)
    lengths = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(norms, lengths**2, rtol=0.02)
    return np.abs(products - rows @ rows.T) / np.outer(lengths, lengths)


def test_a_scale_that_overflows_on_the_way_back_is_lowered():
    def build(last="float32"):
        grow = layers.Rescaling(4096.0)
        return small_model(grow, last=last)

    batch = data([1.0, 1e-4, 30.0], (4,))
    weights, rows = in_float64(lambda: build("float64"), batch)
    functions = functions_at("mixed_float16", build, weights, batch)
    assert relative_errors(functions, batch, rows).max() < 0.01


def test_a_recurrence_goes_back_in_float32():
    def build(last="float32"):
        return sequential(
            (3, 4),
            layers.Masking(),
            layers.LSTM(3),
            layers.Dense(2, dtype=last),
        )

    x, y, weight = data([1.0, 1e-6, 1e-4], (3, 4))
    x[1, 2:] = 0  # masked
    batch = x, y, weight
    weights, rows = in_float64(lambda: build("float64"), batch)
    functions = functions_at("mixed_float16", build, weights, batch)
    assert relative_errors(functions, batch, rows).max() < 0.02


class Stretch(keras.Layer):
    """One number for all of a long input: its gradient is a long sum."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale")

    def call(self, inputs):
        return inputs * self.scale


class Mean(keras.Layer):
    """The mean over a long input."""

    def call(self, inputs):
        return keras.ops.mean(inputs, axis=1, keepdims=True) / 100


def test_a_layer_that_overflows_in_its_own_sums_is_scaled_once_more():
    def build(last="float32"):
        return sequential(
            (500,),
            layers.Rescaling(1.0),
            Stretch(),
            Mean(dtype=last),
        )

    # A sum of 500 products with 400 of one sign: more than float16 holds.
    x, y, weight = data([1.0, 1e-6], (500,))
    batch = short(400.0 + x), y, weight
    weights, rows = in_float64(lambda: build("float64"), batch)
    functions = functions_at("mixed_float16", build, weights, batch)
    assert relative_errors(functions, batch, rows).max() < 0.02


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_broken_already_stays_so_and_is_named(bad):
    batch = data([1.0, 1.0, 1.0], (4,))
    with precision("float32"):
        keras.config.set_dtype_policy("mixed_float16")
        model = small_model(Slopes(name="slopes"))
        functions = GradientFunctions(model, loss, like=batch)
    good = functions.squared_norms(batch, RATE)
    batch[0][1] = bad
    norms = functions.squared_norms(batch, RATE).numpy()
    assert np.isnan(norms[1])
    np.testing.assert_array_equal(norms[[0, 2]], np.array(good)[[0, 2]])
    _, rows = first_not_finite(functions, batch)
    np.testing.assert_array_equal(rows, [1])


def test_an_infinite_gradient_names_its_layer():
    with precision("float32"):
        keras.config.set_dtype_policy("mixed_float16")
        # The root's slope is infinite at zero, where its value is not.
        root = layers.Dense(1, name="root", activation=keras.ops.sqrt)
        model = sequential((1,), root)
    root.set_weights([np.ones((1, 1)), np.zeros(1)])
    batch = np.array([[1.0], [0.0], [4.0]], "float32"), np.ones(3, "float32")
    functions = GradientFunctions(model, uneven_loss, like=batch)
    name, rows = first_not_finite(functions, batch)
    assert name.endswith("root")
    np.testing.assert_array_equal(rows, [1])


@pytest.mark.parametrize(
    ("policy", "repeats"),
    [("float32", False), ("mixed_bfloat16", False), ("mixed_float16", True)],
)
def test_only_float16_pays_for_scaling(policy, repeats):
    batch = data([1.0, 1.0], (4,))
    with precision("float32"):
        keras.config.set_dtype_policy(policy)
        functions = GradientFunctions(small_model(), loss, like=batch)
    graph = functions.captured.get_concrete_function().graph
    assert has_loops(graph) == repeats


@pytest.mark.parametrize("name", ["sparse_categorical_crossentropy", "mse"])
def test_outputs_in_float16_have_the_loss_of_training(name):
    with precision("float32"):
        keras.config.set_dtype_policy("mixed_float16")
        model = sequential((4,), layers.Dense(3, activation="softmax"))
    model.compile(loss=name)
    # So sure of itself that the probabilities in float16 are 0 and 1, where
    # the logits would tell more.
    model.set_weights([30 * np.eye(4)[:, :3], np.zeros(3)])
    x = np.eye(4, dtype="float32")
    y = np.array([0, 0, 1, 2]) if name != "mse" else np.ones((4, 3))
    functions = GradientFunctions(model, per_example_loss(model), like=(x, y))
    captured = functions.captured((x, y))
    assert captured.losses.dtype == tf.float32
    expected = model.compute_loss(x, y, model(x, training=False))
    np.testing.assert_allclose(np.mean(captured.losses), expected, rtol=1e-6)
