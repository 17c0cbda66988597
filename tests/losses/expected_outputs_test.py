"""Queries, TRAK and representer points read a loss in the same way."""

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.losses.expected_outputs import ExpectedOutputs, choice_of
from keras_tracin.losses.invalid_labels import LabelsOutsideClasses
from keras_tracin.losses.model_outputs import model_output
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.losses.query_losses import query_value
from keras_tracin.methods.representer.targets import meaning_of
from tests.error_rows import row
from tests.gradients.oracle import sequential

COUNT, WIDTH = 6, 3
X = np.random.default_rng(0).normal(size=(COUNT, WIDTH)).astype("float32")

BINARY = functools.partial(keras.losses.binary_crossentropy, from_logits=True)
SPARSE = functools.partial(
    keras.losses.sparse_categorical_crossentropy, from_logits=True
)


def own(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def model_of(activation, loss, outputs=WIDTH):
    model = sequential((WIDTH,), layers.Dense(outputs, activation=activation))
    model.compile("sgd", loss)
    return model


def kind_of_head(loss, outputs, labels, activation="linear"):
    head = types.SimpleNamespace(
        weights=np.zeros((WIDTH, outputs)), activation=activation
    )
    return meaning_of(head, None, loss, labels).kind


@pytest.mark.parametrize(
    ("loss", "choice", "from_logits"),
    [
        ("sparse_categorical_crossentropy", "classes", False),
        (
            keras.losses.CategoricalCrossentropy(from_logits=True),
            "classes",
            True,
        ),
        (keras.losses.CategoricalHinge(), "classes", None),
        (BINARY, "sides", True),
        ("squared_hinge", "sides", None),
        ("mse", "numbers", None),
        (keras.losses.Huber(), "numbers", None),
        ("kl_divergence", None, None),
        (own, None, None),
    ],
)
def test_a_loss_says_what_it_expects(loss, choice, from_logits):
    expected = ExpectedOutputs.of(model_of(None, loss))
    assert (expected.choice, expected.from_logits) == (choice, from_logits)
    assert expected == ExpectedOutputs.of(model_of(None, "mae"), loss)


def test_several_losses_say_nothing():
    assert ExpectedOutputs.of(None, {"a": "mse", "b": "mse"}).choice is None


def test_outputs_of_a_softmax_exclude_each_other_under_any_loss():
    for loss in ("binary_crossentropy", "mse", own):
        assert choice_of("softmax", ExpectedOutputs.of(None, loss)) == "classes"
    classes = ExpectedOutputs.of(None, "categorical_crossentropy")
    assert choice_of("sigmoid", classes) == "classes"
    assert choice_of("sigmoid", ExpectedOutputs.of(None, own)) == "sides"


def test_options_of_a_partial_loss_count_for_trak():
    model = model_of(None, BINARY, outputs=1)
    output = model_output(model, x=X)
    assert output.kind == "margin"
    labels, logits = np.arange(COUNT) % 2, model(X)
    np.testing.assert_allclose(
        output.value(labels, logits, None),
        logits[:, 0] * np.where(labels, 1, -1),
        rtol=1e-6,
    )


@pytest.mark.parametrize("loss", [BINARY, "hinge", "binary_crossentropy"])
def test_trak_has_no_margin_of_outputs_that_do_not_exclude_each_other(loss):
    model = model_of(None, "mse")
    output = model_output(model, loss, "margin")
    with pytest.raises(ValueError, match=r"chooses one class.*binary loss"):
        output.value(np.eye(WIDTH)[:2], model(X[:2]), None)


def test_trak_takes_no_hinge_for_a_logistic_loss():
    for loss in ("hinge", "categorical_hinge"):
        with pytest.raises(ValueError, match=f"{loss}.*output='margin'"):
            model_output(model_of(None, loss))


@pytest.mark.parametrize(
    ("activation", "loss"),
    [
        ("sigmoid", "binary_crossentropy"),
        (None, BINARY),
        (tf.nn.sigmoid, "binary_crossentropy"),
        ("sigmoid", own),
    ],
)
def test_a_query_has_no_margin_of_outputs_that_do_not_exclude_each_other(
    activation, loss
):
    model = model_of(activation, loss)
    labels = np.eye(WIDTH, dtype="float32")[np.arange(COUNT) % WIDTH]
    value = query_value(model, "margin", None, X)
    with pytest.raises(ValueError, match=row("inclusive-outputs")):
        value(labels, model(X), None)
    # Each output has a logit of its own.
    dense = model.layers[-1]
    logits = X @ dense.kernel.numpy() + dense.bias.numpy()
    value = query_value(model, "logit", None, X)
    np.testing.assert_allclose(
        value(labels, model(X), None),
        -(logits * labels).sum(axis=1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_a_query_has_a_margin_of_a_softmax_under_a_binary_loss():
    model = model_of("softmax", "binary_crossentropy")
    labels = np.arange(COUNT) % WIDTH
    p = model(X).numpy()[np.arange(COUNT), labels]
    value = query_value(model, "margin", None, X)(labels, model(X), None)
    np.testing.assert_allclose(-value, np.log(p / (1 - p)), rtol=1e-4)


def test_representer_points_take_numbers_for_numbers():
    counts = np.array([0, 1, 2])
    assert kind_of_head("poisson", 2, counts) == "numbers"
    assert kind_of_head(own, 2, counts) == "classes"
    assert kind_of_head(own, 1, counts) == "numbers"
    assert kind_of_head(BINARY, 1, counts) == "sides"
    assert kind_of_head(SPARSE, 1, counts.astype("float32")) == "classes"


def test_labels_outside_of_a_partial_loss_are_named():
    loss = per_example_loss(model_of(None, SPARSE))
    with pytest.raises(LabelsOutsideClasses, match=r"\[7.0\] in rows \[1\]"):
        loss(np.array([0, 7]), tf.zeros([2, WIDTH]), None)
