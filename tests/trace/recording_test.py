"""Traces on disk: killed, resumed, and refused where they do not fit."""

import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.trace import TrainingTrace, trace_training
from tests.error_rows import row
from tests.trace.helpers import QUERIES, X, Y, make_model

ROOT = pathlib.Path(__file__).parents[2]


def traced(directory=None, data=None, **options):
    """Four epochs of three batches, with Adam and Dropout."""
    model = make_model(
        keras.optimizers.Adam(0.01), keras.layers.Dropout(0.5, seed=1)
    )
    settings = {"epochs": 4, "batch_size": 8, **options}
    found = trace_training(
        model, data or (X, Y), QUERIES, directory=directory, **settings
    )
    return model, found


class KilledInEpochThree(keras.callbacks.Callback):
    """The process ends as if the machine had."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == 8:
            signal.raise_signal(signal.SIGKILL)


CHILD = """
import sys
from tests.trace import recording_test as test
test.traced(sys.argv[1], callbacks=[test.KilledInEpochThree()])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted training, on disk: its directory, model and trace."""
    directory = tmp_path_factory.mktemp("whole") / "a"
    return directory, *traced(directory)


def assert_same(found, expected):
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.train_ids, expected.train_ids)
    for name in ("learning_rate", "real", "first_order", "unattributed"):
        np.testing.assert_array_equal(
            getattr(found.steps, name), getattr(expected.steps, name)
        )
    for one, other in zip(found.steps.ids, expected.steps.ids, strict=True):
        np.testing.assert_array_equal(one, other)


def test_killed_training_resumes_and_ends_with_the_same_table(tmp_path, whole):
    directory = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, "-c", CHILD, str(directory)], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert len(TrainingTrace.load(directory).steps) == 6  # two epochs of 3
    model, found = traced(directory)
    _, expected_model, expected = whole
    assert_same(found, expected)
    for one, other in zip(
        model.get_weights(), expected_model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert found.history.epoch == [0, 1, 2, 3]
    assert len(found.history.history["loss"]) == 4


def test_memory_disk_and_a_second_look_give_the_same_trace(whole):
    directory, _, expected = whole
    assert_same(traced()[1], expected)
    assert_same(TrainingTrace.load(directory), expected)
    assert_same(traced(directory)[1], expected)  # nothing left to train


def test_dataset_that_shuffles_resumes_in_its_own_order(tmp_path):
    def data():
        return kt.with_ids((X, Y)).shuffle(24, seed=5).batch(8)

    traced(tmp_path / "part", data(), epochs=1)
    resumed = traced(tmp_path / "part", data(), epochs=3)[1]
    expected = traced(None, data(), epochs=3)[1]
    assert_same(resumed, expected)
    assert not np.array_equal(expected.steps.ids[0], expected.steps.ids[3])


def test_directory_of_a_trace_is_a_run_for_other_methods(whole):
    directory, model, _ = whole
    run = kt.TrainingRun(directory)
    assert [checkpoint.epoch for checkpoint in run] == [1, 2, 3, 4]
    scores = kt.TracIn(model, (X, Y), run).influence(QUERIES, verbose=0)
    assert scores.scores.shape == (5, 24)


def test_trace_of_another_kind_is_refused_and_replaced_if_wanted(
    whole, tmp_path
):
    directory, *_ = whole
    with pytest.raises(
        ValueError,
        match=row("trace-settings", "received batch_size 7, expected 8"),
    ):
        traced(directory, batch_size=7)
    model = make_model("sgd")
    run = tmp_path / "run"
    model.fit(X, Y, verbose=0, callbacks=[kt.TracInCheckpoint(run)])
    with pytest.raises(ValueError, match="was not traced"):
        trace_training(model, (X, Y), QUERIES, epochs=1, directory=run)
    with pytest.raises(ValueError, match="was not traced"):
        TrainingTrace.load(run)
    trace_training(
        model, (X, Y), QUERIES, epochs=1, directory=run, resume=False
    )
    assert len(TrainingTrace.load(run).steps) == 1
