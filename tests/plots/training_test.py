"""What the figures of a training draw."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin import plots
from tests.runs.helpers import make_run_of_losses


def curves(figure):
    (axes,) = figure.axes
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_loss_curve_marks_the_chosen_checkpoints(tmp_path):
    run = make_run_of_losses(tmp_path / "a", [4.0, 2.0, 1.0])
    found = curves(plots.loss_curve(run, run.select([0, 2])))
    assert found["loss"].tolist() == [[1, 4], [2, 2], [3, 1]]
    assert found["2 chosen checkpoints"].tolist() == [[1, 4], [3, 1]]
    assert list(curves(plots.loss_curve(run))) == ["loss"]
    with pytest.raises(ValueError, match="Received: 'val_loss'"):
        plots.loss_curve(run, metric="val_loss")
    other = make_run_of_losses(tmp_path / "b", [4.0, 2.0, 1.0, 0.5])
    with pytest.raises(ValueError, match="one of epoch 4"):
        plots.loss_curve(run, other)


def make_trace(real, first_order):
    steps = kt.StepTable(
        learning_rate=np.ones(len(real)),
        real=real,
        first_order=first_order,
        along_step=real,
        unattributed=0 * real,
        ids=[np.arange(2)] * len(real),
    )
    nothing = np.zeros(0)
    return kt.TrainingTrace(
        scores=nothing,
        unattributed=nothing,
        loss_drop=nothing,
        query_ids=nothing,
        train_ids=nothing,
        steps=steps,
        history=keras.callbacks.History(),
    )


def test_loss_changes_are_points_of_real_and_estimated_change():
    real = np.array([[1.0, -2.0], [3.0, 4.0], [0.0, 1.0]])
    estimate = real * 2
    figure = plots.loss_changes(make_trace(real, estimate))
    (axes,) = figure.axes
    _, points = axes.lines
    np.testing.assert_array_equal(points.get_xdata(), real.ravel())
    np.testing.assert_array_equal(points.get_ydata(), estimate.ravel())
    assert axes.get_title() == "3 steps × 2 queries, Pearson 1.000"
    figure = plots.loss_changes(make_trace(real, estimate), most=4)
    assert len(figure.axes[0].lines[1].get_xdata()) == 4
    with pytest.raises(ValueError, match="Received: 'second'"):
        plots.loss_changes(make_trace(real, estimate), "second")
