"""The compiled gradient steps: any batch size, one trace, the same bits."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.engine.diagnosis import first_not_finite
from keras_tracin.engine.steps import GradientFunctions, kind_of
from keras_tracin.gradients import flat
from keras_tracin.losses.per_example import per_example_loss
from tests.gradients.oracle import (
    assert_products_close,
    jacobian,
    precision,
    sequential,
    uneven_loss,
)

RATE = tf.constant(0.25)


def small_model():
    keras.utils.set_random_seed(0)
    return sequential(
        (8, 8, 1),
        layers.Conv2D(3, 3, activation="relu", name="conv"),
        layers.BatchNormalization(name="norm"),
        layers.Flatten(),
        layers.PReLU(name="slope"),
        layers.Dense(4, name="dense"),
    )


def data(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 8, 8, 1)).astype("float32")
    return x, rng.normal(size=count).astype("float32")


def part(batch, start, stop):
    return tuple(array[start:stop] for array in batch)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def functions(model):
    return GradientFunctions(model, uneven_loss, like=data(2))


@pytest.fixture(scope="module")
def rows(model):
    """The oracle's gradients of 7 training examples and 3 queries."""
    variables = model.trainable_variables
    return [
        jacobian(model, (*data(count, seed), None), variables)
        for count, seed in ((7, 0), (3, 1))
    ]


def test_products_are_rows_of_queries_times_rate(functions, rows):
    captured = functions.captured(data(3, 1))
    found = functions.products(data(7), captured.factors, RATE)
    assert_products_close(found / RATE, rows[1], rows[0], "float32")


def test_contractions_are_one_query_for_all(functions, rows):
    directions = functions.totals(data(3, 1))
    found = functions.contractions(data(7), directions, RATE)
    whole = rows[1].sum(axis=0, keepdims=True)
    assert_products_close(found / RATE, whole, rows[0], "float32")


def test_products_along_vectors_are_those_with_the_rows(functions, rows):
    vectors = functions.rows(data(3, 1), tf.constant(1.0))
    directions = flat.directions(vectors, functions.variables)
    found = functions.along(data(7), directions, RATE)
    assert_products_close(found / RATE, rows[1], rows[0], "float32")


def test_squared_norms_are_those_of_the_rows(functions, rows):
    found = functions.squared_norms(data(7), RATE)
    np.testing.assert_allclose(
        found, 0.25 * np.sum(rows[0] ** 2, axis=1), rtol=1e-4
    )


def test_scores_do_not_depend_on_the_batch(functions):
    queries = functions.captured(data(3, 1)).factors
    train = data(7)
    whole = functions.products(train, queries, RATE).numpy()
    norms = functions.squared_norms(train, RATE).numpy()
    scale = np.sqrt(norms * functions.squared_norms(data(3, 1), RATE)[:, None])
    for size in (1, 2, 5):
        batches = [part(train, i, i + size) for i in range(0, 7, size)]
        split = [functions.products(b, queries, RATE) for b in batches]
        error = np.abs(np.concatenate(split, axis=1) - whole) / scale
        assert error.max() < 1e-6
        split = [functions.squared_norms(b, RATE) for b in batches]
        np.testing.assert_allclose(np.concatenate(split), norms, rtol=1e-5)


def test_the_same_bits_come_again(functions):
    def everything():
        captured = functions.captured(data(3, 1))
        return [
            *tf.nest.flatten(captured.factors),
            functions.products(data(7), captured.factors, RATE),
            functions.contractions(data(7), functions.totals(data(3)), RATE),
            functions.squared_norms(data(7), RATE),
        ]

    for first, second in zip(everything(), everything(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_each_step_is_traced_once(functions):
    for count in (1, 4, 6):
        captured = functions.captured(data(count))
        functions.products(data(count + 1), captured.factors, RATE)
    assert functions.captured.experimental_get_tracing_count() == 1
    assert functions.products.experimental_get_tracing_count() == 1


def test_new_weights_count_without_another_trace(model, functions):
    before = functions.squared_norms(data(4), RATE)
    weights = model.get_weights()
    for variable in model.trainable_variables:
        variable.assign(2.0 * variable)
    rows = jacobian(model, (*data(4), None), model.trainable_variables)
    after = functions.squared_norms(data(4), RATE)
    model.set_weights(weights)
    assert functions.squared_norms.experimental_get_tracing_count() == 1
    assert np.all(before != after)
    np.testing.assert_allclose(after, 0.25 * np.sum(rows**2, axis=1), rtol=1e-4)


def test_running_a_step_changes_nothing_in_the_model(model, functions):
    model.compile("adam", "mse")
    model.optimizer.build(model.trainable_variables)
    state = [*model.weights, *model.optimizer.variables]
    before = [np.array(variable) for variable in state]
    functions.products(data(4), functions.captured(data(2)).factors, RATE)
    functions.squared_norms(data(4), RATE)
    for variable, value in zip(state, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_queries_may_have_a_loss_and_a_form_of_their_own(model, functions):
    def other_loss(y, y_pred, sample_weight):
        return tf.reduce_sum(tf.sin(y_pred), axis=1)

    like = data(2)[0], tf.zeros((2, 5))  # labels of another shape
    queries = GradientFunctions(model, other_loss, like=like)
    train = GradientFunctions(model, uneven_loss, like=data(2), queries=queries)
    batch = data(3, 1)[0], tf.zeros((3, 5))
    variables = model.trainable_variables
    left = jacobian(model, (*batch, None), variables, other_loss)
    right = jacobian(model, (*data(7), None), variables)
    factors = queries.captured(batch).factors
    found = train.products(data(7), factors, RATE)
    assert_products_close(found / RATE, left, right, "float32")


@pytest.mark.parametrize(
    "policy", ["float64", "mixed_bfloat16", "mixed_float16"]
)
def test_products_are_float32_or_wider(policy):
    rng = np.random.default_rng(0)
    result = "float64" if policy == "float64" else "float32"
    with precision(result):
        keras.config.set_dtype_policy(policy)
        model = sequential(
            (3,),
            layers.Dense(4, activation="tanh"),
            layers.LayerNormalization(),
            layers.Dense(2),
            layers.Activation("linear", dtype=result),
        )
        x = rng.normal(size=(4, 3)).astype(model.inputs[0].dtype)
        batch = x, np.ones(4, "float32")
        functions = GradientFunctions(model, uneven_loss, like=batch)
        factors = functions.captured(batch).factors
        found = functions.products(batch, factors, RATE)
        rows = jacobian(
            model, (*batch, None), model.trainable_variables
        ).astype("float64")
    assert found.dtype == result
    scale = np.linalg.norm(rows, axis=1)
    error = np.abs(found.numpy() / 0.25 - rows @ rows.T) / np.outer(
        scale, scale
    )
    assert error.max() < 0.02


def test_sample_weights_scale_gradients(model, functions):
    batch = (*data(4), np.array([1.0, 2.0, 0.0, 0.5], "float32"))
    weighted = GradientFunctions(model, uneven_loss, like=batch)
    np.testing.assert_allclose(
        weighted.squared_norms(batch, RATE),
        batch[2] ** 2 * functions.squared_norms(data(4), RATE),
        rtol=1e-5,
    )


def test_layers_restrict_the_steps(model, functions):
    named = GradientFunctions(
        model, uneven_loss, like=data(2), layers=["conv", "dense"]
    )
    found = named.captured(data(2))
    assert [name.split("/")[-1] for name in found.names] == ["conv", "dense"]
    others = GradientFunctions(
        model, uneven_loss, like=data(2), layers=["norm", "slope"]
    )
    parts = [f.squared_norms(data(4), RATE) for f in (named, others)]
    np.testing.assert_allclose(
        sum(parts), functions.squared_norms(data(4), RATE), rtol=1e-5
    )


def test_factor_bytes_are_those_of_compact_factors(functions):
    factors = functions.captured(data(5)).factors
    size = sum(tensor.numpy().nbytes for tensor in tf.nest.flatten(factors))
    assert functions.factor_bytes * 5 == size


def test_kind_tells_batches_that_need_steps_of_their_own():
    assert kind_of(data(2)) == kind_of(data(7))
    assert kind_of(data(2)) != kind_of((*data(2), np.ones(2, "float32")))
    x, y = data(2)
    assert kind_of((x, y)) != kind_of((x[:, :4], y))
    assert kind_of((x, y)) != kind_of((x, y.astype("float64")))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_not_finite_names_the_rows(functions, bad):
    x, y = data(5)
    assert first_not_finite(functions, (x, y)) is None
    x = x.copy()
    x[[1, 3], 0, 0, 0] = bad
    _, found = first_not_finite(functions, (x, y))
    np.testing.assert_array_equal(found, [1, 3])


def test_first_not_finite_names_the_layer():
    # The root's slope is infinite at zero, where its value is not.
    root = layers.Dense(1, name="root", activation=keras.ops.sqrt)
    model = sequential((1,), root)
    root.set_weights([np.ones((1, 1)), np.zeros(1)])
    batch = np.array([[1.0], [0.0], [4.0]], "float32"), np.ones(3, "float32")
    functions = GradientFunctions(model, uneven_loss, like=batch)
    name, found = first_not_finite(functions, batch)
    assert name.endswith("root")
    np.testing.assert_array_equal(found, [1])


class AddsLoss(keras.Layer):
    """A layer with a loss computed from its inputs."""

    def call(self, inputs):
        self.add_loss(keras.ops.mean(inputs))
        return inputs


@pytest.mark.parametrize(
    "make_layer",
    [
        lambda: AddsLoss(name="culprit"),
        lambda: layers.Dense(2, activity_regularizer="l2", name="culprit"),
    ],
    ids=["add_loss", "activity_regularizer"],
)
def test_losses_on_activations_are_refused_unless_told_otherwise(make_layer):
    model = sequential((2,), make_layer(), layers.Dense(1))
    model.compile(loss="mse")
    loss = per_example_loss(model)
    batch = np.ones((3, 2), "float32"), np.ones((3, 1), "float32")
    strict = GradientFunctions(model, loss, like=batch)
    with pytest.raises(ValueError, match=r"culprit.*`loss=`"):
        strict.captured(batch)
    relaxed = GradientFunctions(model, loss, like=batch, strict=False)
    assert relaxed.captured(batch).losses.shape == (3,)


def test_weight_regularizers_do_not_belong_to_examples():
    plain, decayed = (
        sequential((2,), layers.Dense(1, kernel_regularizer=regularizer))
        for regularizer in (None, "l2")
    )
    decayed.set_weights(plain.get_weights())
    batch = np.ones((3, 2), "float32"), np.arange(3, dtype="float32")
    norms = [
        GradientFunctions(model, uneven_loss, like=batch).squared_norms(
            batch, RATE
        )
        for model in (plain, decayed)
    ]
    np.testing.assert_array_equal(*norms)
