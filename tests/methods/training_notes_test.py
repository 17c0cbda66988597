"""What is said of a run before it is scored."""

import re
import warnings

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import TrainingRun
from tests.error_rows import row

X = np.eye(4, dtype="float32")
Y = np.array([0, 1, 0, 1])
WEIGHTS = np.array([1.0, 2, 1, 2], "float32")


def fit(directory, data=(X, Y), **options):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    callbacks = [kt.TracInCheckpoint(directory)]
    model.fit(*data, batch_size=2, verbose=0, callbacks=callbacks, **options)
    return model


@pytest.mark.parametrize(
    "given",
    [{"class_weight": {0: 1.0, 1: 2.0}}, {"sample_weight": WEIGHTS}],
    ids=["class_weight", "sample_weight"],
)
def test_weights_of_training_that_the_data_lack_are_warned_of(tmp_path, given):
    model = fit(tmp_path, **given)
    assert TrainingRun(tmp_path).weighted
    with pytest.warns(
        UserWarning,
        match=row("missing-weights", "Pass the `class_weight` given to f"),
    ):
        kt.TracIn(model, (X, Y), tmp_path)
    report = kt.check(model, (X, Y), tmp_path, verbose=0)
    assert re.search(row("missing-weights"), str(report))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kt.TracIn(model, (X, Y, WEIGHTS), tmp_path)
        kt.TracIn(model, (X, Y), tmp_path, class_weight={0: 1.0, 1: 2.0})


def test_weights_that_training_lacked_are_warned_of(tmp_path):
    model = fit(tmp_path)
    assert TrainingRun(tmp_path).weighted is False
    with pytest.warns(
        UserWarning,
        match=row("extra-weights", "Leave out what was not given to fit"),
    ):
        kt.TracIn(model, (X, Y, WEIGHTS), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kt.TracIn(model, (X, Y), tmp_path)


def test_a_run_that_does_not_know_of_weights_warns_of_none(tmp_path):
    model = fit(tmp_path, sample_weight=WEIGHTS)
    run = TrainingRun.from_weights([TrainingRun(tmp_path)[0].path], 0.1)
    assert run.weighted is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kt.TracIn(model, (X, Y), run)


def test_weights_given_batch_by_batch_are_seen(tmp_path):
    model = fit(tmp_path / "fit")
    callback = kt.TracInCheckpoint(tmp_path / "loop")
    callbacks = keras.callbacks.CallbackList([callback], model=model)
    callbacks.on_train_begin()
    model.train_on_batch(X, Y, sample_weight=WEIGHTS)
    callbacks.on_train_end()
    assert TrainingRun(tmp_path / "loop").weighted
