"""Scores that float32 cannot hold, labels and ids that cannot be used."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.curvature.operators import Damped, Matrix
from keras_tracin.curvature.solvers import LiSSA, solve
from tests.error_rows import row

X = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
Y = np.random.default_rng(1).normal(size=(6, 1)).astype("float32")


def model_of(scale, *hidden):
    def loss(y_true, y_pred):
        return scale * tf.reduce_sum((y_true - y_pred) ** 2, axis=-1)

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *hidden, layers.Dense(1)])
    model.compile("sgd", loss)
    return model


def scored(model, tmp_path, x=X):
    model.fit(x, Y, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path)])
    return kt.TracIn(model, (x, Y), tmp_path)


@pytest.mark.parametrize("scale", [1e-25, 1e-19])
def test_scores_that_underflow_are_warned_of(scale, tmp_path):
    tracin = scored(model_of(scale), tmp_path)
    with pytest.warns(UserWarning, match="Scores underflow float32"):
        tracin.self_influence(verbose=0)
    with pytest.warns(UserWarning, match="Scores underflow float32"):
        tracin.influence((X[:2], Y[:2]), verbose=0)


def test_gradients_that_are_zero_are_no_underflow(tmp_path):
    dead = layers.Dense(
        4, activation="relu", bias_initializer=keras.initializers.Constant(-99)
    )
    model = keras.Sequential(
        [keras.Input((3,)), dead, layers.Dense(1, use_bias=False)]
    )
    model.compile("sgd", "mse")
    tracin = scored(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scores = tracin.influence((X, Y), verbose=0).scores
    assert not scores.any()


def test_text_as_labels_is_refused(tmp_path):
    model = model_of(1.0)
    model.fit(X, Y, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path)])
    words = np.array(["cat", "dog"] * 3)
    for y in (words, words.astype(object)):
        with pytest.raises(ValueError, match=row("text-labels", "'cat'")):
            kt.TracIn(model, (X, y), tmp_path)
    data = tf.data.Dataset.from_tensor_slices((X, words)).batch(2)
    with pytest.raises(
        ValueError, match=row("text-labels", "labels of dtype ...cat")
    ):
        kt.TracIn(model, data, tmp_path)
    tracin = kt.TracIn(model, (X, Y), tmp_path)
    with pytest.raises(
        ValueError, match=row("text-labels", "labels of `test` should")
    ):
        tracin.influence((X, words), verbose=0)


def test_text_as_inputs_of_a_model_of_numbers_is_refused(tmp_path):
    model = model_of(1.0)
    model.fit(X, Y, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path)])
    words = np.full((6, 3), "cat")
    with pytest.raises(ValueError, match=row("text-inputs")):
        kt.TracIn(model, (words, Y), tmp_path)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([-1.0, 0.5, 2.0], "Raise `damping` by 0.9 or more"),
        ([-0.2, 0.5, 2.0], "Raise `damping` by 0.1 or more"),
    ],
)
def test_a_series_that_diverges_says_what_to_do(values, words):
    operator = Damped(Matrix(np.diag(np.float32(values))), 0.1)
    with pytest.raises(ValueError, match=row("lissa")) as error:
        solve(operator, tf.ones([1, 3]), LiSSA(batch_size=1, steps=2000))
    assert words in str(error.value)
    assert "gauss_newton" in str(error.value)


def test_ids_that_occur_twice_are_warned_of(tmp_path):
    model = model_of(1.0)
    model.fit(X, Y, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path)])
    train = kt.with_ids((X, Y), [0, 1, 1, 2, 3, 4]).batch(3)
    tracin = kt.TracIn(model, train, tmp_path)
    with pytest.warns(UserWarning, match=r"id in common.*\[1\] more than"):
        tracin.self_influence(verbose=0)
    with pytest.warns(UserWarning, match="id in common"):
        tracin.influence((X, Y), verbose=0)
    with pytest.warns(UserWarning, match="id in common"):
        tracin.top_k((X, Y), k=6, verbose=0)


def test_ids_that_occur_twice_make_no_groups():
    model = model_of(1.0)
    train = kt.with_ids((X, Y), [0, 1, 1, 2, 3, 4]).batch(3)
    method = kt.InfluenceFunctions(model, train, damping=1.0)
    with (
        pytest.warns(UserWarning, match="not converged"),
        pytest.raises(ValueError, match=row("repeated-ids")),
    ):
        method.group_influence((X, Y), {"some": [1, 2]}, verbose=0)
    sums = method.group_influence((X, Y), {"some": [0, 2]}, verbose=0)
    assert sums.scores.shape == (6, 1)
