"""What a query measures, against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.losses.invalid_labels import LabelsOutsideClasses
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.losses.query_losses import query_value
from tests.gradients.oracle import functional, sequential

COUNT, CLASSES = 5, 4
WEIGHTS = np.array([1.0, 0.5, 2.0, 0.0, 3.0], "float32")


def identity_model(loss="mse"):
    model = sequential((CLASSES,), layers.Activation("linear"))
    model.compile(loss=loss)
    return model


def squared(y_true, y_pred):
    return keras.ops.mean(keras.ops.square(y_true - y_pred), axis=-1)


def suitable_data():
    """Labels and predictions `[5, classes]`."""
    rng = np.random.default_rng(0)
    y_pred = rng.uniform(0.1, 0.9, size=(COUNT, CLASSES)).astype("float32")
    return np.eye(CLASSES, dtype="float32")[LABELS], y_pred


def two_outputs():
    def call(x):
        return {"left": layers.Dense(2)(x), "right": layers.Dense(1)(x)}

    return functional((3,), call)


LOGITS = np.random.default_rng(0).normal(size=(COUNT, CLASSES)) * 2
LABELS = np.array([0, 2, 1, 3, 2])


def expected_query(measure, logits, labels):
    chosen = logits[np.arange(len(labels)), labels]
    if measure == "logit":
        return -chosen
    others = np.ma.array(logits, mask=np.eye(logits.shape[1])[labels] > 0)
    return np.log(np.exp(others).sum(axis=1)) - chosen


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize("activation", ["linear", "softmax"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_logit_and_margin_of_the_label(measure, activation, one_hot):
    model = sequential((CLASSES,), layers.Activation(activation))
    y = np.eye(CLASSES)[LABELS] if one_hot else LABELS
    values = query_value(model, measure)(
        y, model(LOGITS.astype("float32")), None
    )
    np.testing.assert_allclose(
        values, expected_query(measure, LOGITS, LABELS), rtol=1e-5
    )


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize("activation", ["linear", "sigmoid"])
@pytest.mark.parametrize("column", [False, True])
def test_one_sigmoid_is_a_choice_of_two(measure, activation, column):
    model = sequential((1,), layers.Activation(activation))
    logits, labels = LOGITS[:, :1], np.array([0, 1, 1, 0, 1])
    y = labels[:, None] if column else labels
    values = query_value(model, measure)(
        y, model(logits.astype("float32")), None
    )
    both = np.hstack([np.zeros_like(logits), logits])
    np.testing.assert_allclose(
        values, expected_query(measure, both, labels), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize("loss", ["mse", squared])
def test_numbers_of_a_regression_are_no_labels(measure, loss):
    model = sequential((1,), layers.Activation("linear"))
    model.compile(loss=loss)
    value = query_value(model, measure)
    y, y_pred = np.array([0.0, 0.3, 1.0]), LOGITS[:3, :1].astype("float32")
    with pytest.raises(LabelsOutsideClasses, match=r"\[0\.3\].*from 0 to 1"):
        value(y, tf.constant(y_pred))
    marked = tf.function(value)(tf.constant(y), tf.constant(y_pred))
    np.testing.assert_array_equal(np.isnan(marked), [False, True, False])


@pytest.mark.parametrize("measure", ["logit", "margin"])
def test_a_soft_label_of_a_binary_loss_is_on_the_closer_side(measure):
    model = sequential((1,), layers.Activation("sigmoid"))
    model.compile(loss="binary_crossentropy")
    value, y_pred = query_value(model, measure), model(LOGITS[:, :1])
    soft = value(np.array([0.1, 0.9, 1.0, 0.0, 0.8]), y_pred, None)
    hard = value(np.array([0, 1, 1, 0, 1]), y_pred, None)
    np.testing.assert_array_equal(soft, hard)


@pytest.mark.parametrize("query_loss", ["loss", "logit", "margin", "mse"])
def test_query_values_are_lower_where_the_prediction_is_better(query_loss):
    model = identity_model(
        keras.losses.CategoricalCrossentropy(from_logits=True)
    )
    y = np.array([[1.0, 0.0, 0.0, 0.0]], "float32")
    value = query_value(model, query_loss)
    good, bad = tf.constant(y), tf.constant(y[:, ::-1])
    assert value(y, good, None)[0] < value(y, bad, None)[0]


@pytest.mark.parametrize("weight", [WEIGHTS, WEIGHTS[:, None]])
def test_sample_weights_scale_logits(weight):
    model = identity_model()
    value = query_value(model, "logit")
    y_pred = tf.constant(LOGITS, tf.float32)
    np.testing.assert_allclose(
        value(LABELS, y_pred, weight),
        WEIGHTS * value(LABELS, y_pred, None),
        rtol=1e-6,
    )


SEQUENCES = np.random.default_rng(1).normal(size=(3, 4, CLASSES))
TAGS = np.array([[0, 1, 2, 3], [3, 2, 0, 0], [1, 0, 0, 0]])


def sequence_values(measure, rows=slice(None), weight=None, one_hot=False):
    """Query values of padded sequences, only some of them in the batch."""
    y_pred = tf.constant(SEQUENCES[rows], tf.float32)
    y_pred._keras_mask = tf.constant(SEEN[rows])
    y = np.eye(CLASSES)[TAGS] if one_hot else TAGS
    return query_value(identity_model(), measure)(y[rows], y_pred, weight)


SEEN = np.arange(4) < np.array([[4], [2], [1]])


@pytest.mark.parametrize("measure", ["logit", "margin"])
@pytest.mark.parametrize("one_hot", [False, True])
def test_a_sequence_is_the_mean_of_its_own_positions(measure, one_hot):
    values = sequence_values(measure, one_hot=one_hot)
    for i, seen in enumerate(SEEN):
        positions = expected_query(measure, SEQUENCES[i], TAGS[i])
        np.testing.assert_allclose(values[i], positions[seen].mean(), rtol=1e-5)
        alone = sequence_values(measure, slice(i, i + 1), one_hot=one_hot)
        np.testing.assert_allclose(alone, values[i : i + 1], rtol=1e-6)


def test_positions_have_weights_of_their_own():
    weight = np.random.default_rng(2).uniform(size=TAGS.shape)
    values = sequence_values("margin", weight=weight)
    for i, seen in enumerate(SEEN):
        positions = weight[i] * expected_query("margin", SEQUENCES[i], TAGS[i])
        np.testing.assert_allclose(values[i], positions[seen].mean(), rtol=1e-5)


@pytest.mark.parametrize("labels", [(3,), (3, 2), (3, 4, 2)])
def test_labels_that_do_not_fit_the_logits_are_refused(labels):
    value = query_value(identity_model(), "logit")
    y_pred = tf.constant(SEQUENCES, tf.float32)
    with pytest.raises(ValueError, match=r"one label for each.*Received"):
        value(np.zeros(labels, int), y_pred, None)


def test_query_loss_is_given_in_several_forms():
    model = identity_model("mae")
    y, y_pred = suitable_data()
    y_pred = tf.constant(y_pred)
    expected = per_example_loss(model, "mse")(y, y_pred, None)
    for form in ("mse", keras.losses.MeanSquaredError(), squared):
        found = query_value(model, form)(y, y_pred, None)
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    for found in (
        query_value(model)(y, y_pred, None),
        query_value(model, "loss")(y, y_pred, None),
    ):
        np.testing.assert_array_equal(
            found, per_example_loss(model)(y, y_pred, None)
        )
    replaced = query_value(model, "loss", loss="mse")(y, y_pred, None)
    np.testing.assert_allclose(replaced, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [None, 3, ["loss"], "no such loss"])
def test_bad_query_loss_is_refused(bad):
    model = identity_model()
    y, y_pred = suitable_data()
    with pytest.raises(ValueError, match=r"query_loss|no such loss"):
        query_value(model, bad)(y, tf.constant(y_pred), None)


@pytest.mark.parametrize("measure", ["logit", "margin"])
def test_logits_need_one_output(measure):
    model = two_outputs()
    y = {"left": np.zeros((2, 2)), "right": np.zeros((2, 1))}
    with pytest.raises(ValueError, match=r"one output.*2 outputs"):
        query_value(model, measure)(y, model(np.zeros((2, 3))), None)
