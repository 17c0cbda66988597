"""Where a run is cut into segments."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import cut_run
from tests.error_rows import row

RATES = [0.0, 0.4, 0.4, 0.3, 0.1, 0.1, 0.04]
LOSSES = [8.0, 7.0, 5.0, 3.0, 2.0, 1.4, 1.0]
STEPS = 2  # in each epoch


class Logged(keras.callbacks.Callback):
    """Gives every epoch a loss."""

    def on_epoch_end(self, epoch, logs):
        logs["loss"] = LOSSES[epoch]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    directory = tmp_path_factory.mktemp("run")
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: RATES[epoch]),
        Logged(),
        kt.TracInCheckpoint(directory),
    ]
    ones = np.ones([2 * STEPS, 1])
    model.fit(
        ones,
        ones,
        batch_size=2,
        epochs=len(RATES),
        verbose=0,
        callbacks=callbacks,
    )
    return kt.TrainingRun(directory)


def epochs(segments):
    return [[own.epoch for own in part.checkpoints] for part in segments]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (None, [[2], [3, 4, 5], [6, 7]]),
        (1, [[2, 3, 4, 5, 6, 7]]),
        (2, [[2, 3], [4, 5, 6, 7]]),
        (6, [[2], [3], [4], [5], [6], [7]]),
        ("rates", [[2, 3, 4], [5, 6], [7]]),
        ("loss", [[2, 3], [4, 5], [6, 7]]),
        ([[2, 3], [5], [7]], [[2, 3], [5], [7]]),
    ],
)
def test_a_run_is_cut_at_its_checkpoints(run, segments, expected):
    # The first epoch moved nothing.
    cut = cut_run(run, segments)
    assert epochs(cut) == expected
    total = STEPS * sum(RATES)
    assert sum(part.rate_sum for part in cut) == pytest.approx(total)
    begin = 0
    for part in cut:
        end = part.checkpoints[-1].epoch
        rates = STEPS * sum(RATES[begin:end])
        assert part.rate_sum == pytest.approx(rates)
        begin = end


def test_checkpoints_can_be_named_themselves(run):
    cut = cut_run(run, [[run[1], run[2]], [run[6]]])
    assert epochs(cut) == [[2, 3], [7]]


def test_fewer_checkpoints_make_fewer_segments(run):
    assert epochs(cut_run(run[-2:])) == [[6], [7]]


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (0, row("segment-count", "6...Received: 0")),
        (7, row("segment-count", "Received: 7")),
        (True, row("segment-count", "True")),
        ("epochs", row("segment-word", "'epochs'")),
        ([], row("segment-lists", "[]")),
        ([2, 3], row("segment-lists", "[2, 3]")),
        ([[2], []], row("segment-lists")),
        ([[3], [2]], row("segment-lists", "order")),
        ([[2], [9]], row("segment-epoch", "9", "0 checkpoints")),
        ([[1]], row("segment-epoch", "[2, 3, 4, 5, 6, 7]")),
    ],
)
def test_a_cut_that_cannot_be_is_refused(run, segments, message):
    with pytest.raises(ValueError, match=message):
        cut_run(run, segments)


def test_phases_of_a_loss_need_one(run, monkeypatch):
    monkeypatch.delitem(run._snapshots[2].logs, "loss")
    with pytest.raises(ValueError, match=row("segment-loss", "nan")):
        cut_run(run, "loss")


def test_the_rates_of_all_steps_are_needed(run):
    files = [own.path for own in run]
    adopted = kt.TrainingRun.from_weights(files, 0.1)
    with pytest.raises(ValueError, match=row("segment-rates", "TracIn")):
        cut_run(adopted)


@pytest.mark.parametrize("count", [0, 1])
def test_a_run_that_moved_nothing_is_refused(run, count):
    with pytest.raises(ValueError, match=row("no-rates-above-zero")):
        cut_run(run[:count])
