"""Labels that a loss has no class for are found, row by row."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.losses.invalid_labels import LabelsOutsideClasses, separate
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.losses.query_losses import query_value

L = keras.losses
INDICES = [0, 2, 3, 1, -1]  # of three classes
HOT = np.eye(3, dtype="float32")[[0, 2, 0, 1, 0]]
HOT[2, 1], HOT[4, 2] = 2.0, -1.0


def make_model(loss, outputs=3, inputs=4):
    model = keras.Sequential([keras.Input((inputs,)), keras.layers.Dense(3)])
    model.add(keras.layers.Dense(outputs, activation="softmax"))
    model.compile(loss=loss)
    return model


def logits(shape=(5, 3)):
    return tf.random.stateless_normal(shape, [1, 2])


CASES = {
    "sparse": (L.SparseCategoricalCrossentropy(from_logits=True), INDICES),
    "a name": ("sparse_categorical_crossentropy", INDICES),
    "columns": (
        L.SparseCategoricalCrossentropy(),
        np.array(INDICES, "float32")[:, None],
    ),
    "categorical": (L.CategoricalCrossentropy(from_logits=True), HOT),
    "focal": (L.CategoricalFocalCrossentropy(), HOT),
    "binary": (L.BinaryCrossentropy(from_logits=True), HOT),
    "binary focal": (L.BinaryFocalCrossentropy(), HOT),
}
each_case = pytest.mark.parametrize(
    ("loss", "labels"), CASES.values(), ids=CASES.keys()
)


@each_case
def test_an_eager_loss_names_the_rows_and_what_it_takes(loss, labels):
    loss = per_example_loss(make_model(loss))
    with pytest.raises(LabelsOutsideClasses, match="numbers from 0 to") as e:
        loss(np.asarray(labels), logits())
    assert e.value.rows == [2, 4]
    assert e.value.received in ([3, -1], [2, -1])


@each_case
def test_a_compiled_loss_is_nan_there_and_nowhere_else(loss, labels):
    loss = per_example_loss(make_model(loss))
    labels = tf.constant(np.asarray(labels, "float32"))

    @tf.function
    def evaluate(labels, y_pred):
        with tf.GradientTape() as tape:
            tape.watch(y_pred)
            values = loss(labels, tf.sigmoid(y_pred))
        return values, tape.gradient(values, y_pred)

    values, gradients = evaluate(labels, logits())
    fit = [0, 1, 3]
    expected, _ = evaluate(tf.gather(labels, fit), tf.gather(logits(), fit))
    np.testing.assert_allclose(values.numpy()[fit], expected, rtol=1e-6)
    assert np.isfinite(gradients.numpy()[fit]).all()
    assert np.isnan(values.numpy()[[2, 4]]).all()
    assert np.isnan(gradients.numpy()[[2, 4]]).any(axis=-1).all()


def test_labels_that_are_no_numbers_are_outside():
    loss = per_example_loss(make_model("sparse_categorical_crossentropy"))
    with pytest.raises(LabelsOutsideClasses, match="nan"):
        loss(np.array([0.0, np.nan]), logits((2, 3)))


def test_the_ignored_class_is_a_label_like_any_other():
    ignoring = L.SparseCategoricalCrossentropy(
        from_logits=True, ignore_class=-1
    )
    loss = per_example_loss(make_model(ignoring))
    values = loss(np.array([0, -1, 2]), logits((3, 3)))
    assert np.isfinite(values).all()
    assert values[1] == 0
    with pytest.raises(LabelsOutsideClasses) as error:
        loss(np.array([0, -1, 3]), logits((3, 3)))
    assert error.value.rows == [2]


def test_where_nothing_counts_any_label_will_do():
    sparse = L.SparseCategoricalCrossentropy(from_logits=True)
    loss = per_example_loss(make_model(sparse))
    padded = np.array([[0, 1, -1], [2, -1, 1]])
    seen = np.array([[1, 1, 0], [1, 1, 1]])
    with pytest.raises(LabelsOutsideClasses) as error:
        loss(padded, logits((2, 3, 3)), seen)
    assert error.value.rows == [1]
    values = loss(padded[:1], logits((1, 3, 3)), seen[:1])
    expected = loss(padded[:1] * seen[:1], logits((1, 3, 3)), seen[:1])
    np.testing.assert_allclose(values, expected, rtol=1e-6)


@pytest.mark.parametrize("measure", ["logit", "margin"])
def test_there_is_no_logit_of_a_label_outside(measure):
    value = query_value(make_model("mse"), measure)
    with pytest.raises(LabelsOutsideClasses, match="from 0 to 2") as error:
        value(np.array(INDICES), logits())
    assert error.value.rows == [2, 4]
    found = tf.function(value)(tf.constant(INDICES), logits())
    np.testing.assert_array_equal(
        np.isnan(found), [False, False, True, False, True]
    )


@pytest.mark.parametrize("loss", [L.MeanSquaredError(), L.Hinge(), L.Poisson()])
def test_other_losses_take_any_label(loss):
    labels = tf.constant([[-3.0], [7.0]])
    same, outside = separate(loss, labels, labels)
    assert same is labels
    assert outside is None
