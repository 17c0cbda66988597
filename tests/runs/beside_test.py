"""Training that depends on more than the model's weights is told apart."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.runs.beside import digests_beside, variables_beside
from tests.error_rows import row

layers, ops = keras.layers, keras.ops
RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 4)).astype("float32")
Y = RNG.integers(0, 3, 16)


def crossentropy(y, y_pred):
    return keras.losses.sparse_categorical_crossentropy(
        y, y_pred, from_logits=True
    )


class Tempered(layers.Layer):
    """Divides by a variable that Keras does not track."""

    def __init__(self):
        super().__init__()
        self.temperature = tf.Variable(1.0, trainable=False)

    def call(self, x):
        return x / self.temperature


class Counting(layers.Layer):
    """Counts its calls in a variable that nothing reads."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0.0, trainable=False)

    def call(self, x):
        self.count.assign_add(1.0)
        return x


class Adding(layers.Layer):
    """Adds a loss in training alone."""

    def call(self, x, training=False):
        if training:
            self.add_loss(ops.mean(x**2))
        return x


def make_model(*inside, loss=crossentropy):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), *inside])
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def record(model, tmp_path, variable=None, epochs=2):
    def change(epoch, logs):
        if variable is not None:
            variable.assign(variable + 1.0)

    callbacks = [
        kt.TracInCheckpoint(tmp_path),
        keras.callbacks.LambdaCallback(on_epoch_end=change),
    ]
    model.fit(X, Y, epochs=epochs, verbose=0, callbacks=callbacks)
    return tmp_path


def test_a_variable_that_a_layer_reads_and_keras_does_not_track(tmp_path):
    tempered = Tempered()
    model = make_model(tempered)
    run = record(model, tmp_path, tempered.temperature)
    with pytest.raises(ValueError, match=row("untracked-variable", "tempered")):
        kt.TracIn(model, (X, Y), run)
    report = kt.check(model, (X, Y), run, verbose=0)
    assert any(
        re.search(row("untracked-variable"), error.message)
        for error in report.errors
    )


def test_a_variable_that_the_loss_reads(tmp_path):
    strength = tf.Variable(0.5)

    def annealed(y, y_pred):
        return crossentropy(y, y_pred) + strength * ops.sum(y_pred**2, -1)

    model = make_model(loss=annealed)
    run = record(model, tmp_path, strength)
    with pytest.raises(
        ValueError, match=row("untracked-variable", "loss refers")
    ):
        kt.TracIn(model, (X, Y), run)


def test_another_model_that_the_loss_reads_may_stay_as_it_is(tmp_path):
    teacher = make_model()

    class Distilled(keras.losses.Loss):
        def call(self, y, y_pred):
            return crossentropy(y, y_pred) + ops.sum(
                y_pred * teacher.layers[0].kernel[0], -1
            )

    model = make_model(loss=Distilled())
    assert len(variables_beside(model)) == 2
    run = record(model, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        kt.TracIn(model, (X, Y), run)
    teacher.set_weights([w + 1.0 for w in teacher.get_weights()])
    with pytest.warns(UserWarning, match=row("untracked-later")):
        kt.TracIn(model, (X, Y), run)


def test_a_count_that_nothing_reads_is_no_matter(tmp_path):
    model = make_model(Counting())
    run = record(model, tmp_path)
    ((_, digests),) = kt.TrainingRun(run).beside
    assert len(digests) == 2
    kt.TracIn(model, (X, Y), run)


def test_a_model_without_such_variables_has_none():
    model = make_model(layers.BatchNormalization(), layers.Dropout(0.5))
    assert digests_beside(model) == []


def test_losses_that_layers_add_in_training_alone_are_refused(tmp_path):
    model = make_model(Adding())
    run = record(model, tmp_path)
    with pytest.raises(
        ValueError,
        match=row("training-losses", "'sequential.../adding'... added losses"),
    ):
        kt.TracIn(model, (X, Y), run)
    kt.TracIn(model, (X, Y), run, loss=crossentropy)


class Chosen(layers.Layer):
    """Chooses a factor by a whole number, which has no gradient."""

    def __init__(self):
        super().__init__()
        self.place = tf.Variable(0, trainable=False)

    def call(self, x):
        return x * tf.gather([1.0, 2.0, 3.0, 4.0], self.place)


def test_a_whole_number_that_a_layer_reads(tmp_path):
    chosen = Chosen()
    model = make_model(chosen)

    def change(epoch, logs):
        chosen.place.assign_add(1)

    callbacks = [
        kt.TracInCheckpoint(tmp_path),
        keras.callbacks.LambdaCallback(on_epoch_end=change),
    ]
    model.fit(X, Y, epochs=2, verbose=0, callbacks=callbacks)
    with pytest.raises(ValueError, match=row("untracked-variable", "chosen")):
        kt.TracIn(model, (X, Y), tmp_path)


def test_a_variable_that_changed_and_is_not_found_any_more(tmp_path):
    strength = tf.Variable(0.5)

    def annealed(y, y_pred):
        return crossentropy(y, y_pred) + strength * ops.sum(y_pred**2, -1)

    run = record(make_model(loss=annealed), tmp_path, strength)
    with pytest.warns(UserWarning, match=row("untracked-later", "loss refers")):
        kt.TracIn(make_model(), (X, Y), run)
