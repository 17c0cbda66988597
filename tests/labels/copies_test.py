"""Copies are trained as the run was, from where it began."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.labels.copies import training_of, untrained_copy
from tests.points import CROSSENTROPY, examples

X, Y = examples(50, 0)


def test_a_copy_trained_like_the_run_ends_where_it_ended(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.4), CROSSENTROPY)
    halve = keras.callbacks.LearningRateScheduler(lambda e, rate: rate / 2)
    callbacks = [halve, kt.TracInCheckpoint(tmp_path)]
    options = {"shuffle": False, "verbose": 0}
    model.fit(X, Y, batch_size=15, epochs=3, callbacks=callbacks, **options)
    run = kt.TrainingRun(tmp_path)
    copy = untrained_copy(model, run)
    training = training_of(run, copy, len(X), len(X))
    assert (training.epochs, training.batch_size) == (3, 13)  # in 4 batches
    copy.fit(X, Y, 15, 3, callbacks=training.callbacks, **options)
    for before, after in zip(
        model.get_weights(), copy.get_weights(), strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-6)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def test_a_schedule_comes_to_its_end_on_fewer_examples(tmp_path):
    def compiled(rate):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(rate), CROSSENTROPY)
        return model

    schedule = keras.optimizers.schedules.CosineDecay(0.4, decay_steps=4)
    for rate, expected in ((schedule, 9), (0.4, 13)):
        model = compiled(rate)
        callbacks = [kt.TracInCheckpoint(tmp_path / str(expected))]
        model.fit(X, Y, batch_size=15, callbacks=callbacks, verbose=0)
        run = kt.TrainingRun(tmp_path / str(expected))
        training = training_of(run, model, num_examples=50, num_in_copy=33)
        assert training.batch_size == expected


def test_without_a_run_weights_are_drawn_anew():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile("adam", CROSSENTROPY)
    before = model.get_weights()
    copy = untrained_copy(model)
    assert (copy.get_weights()[0] != before[0]).all()
    assert copy.optimizer is not model.optimizer
    assert (model.get_weights()[0] == before[0]).all()
