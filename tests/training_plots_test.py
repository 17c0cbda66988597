"""What the figures of a training draw."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin import plots
from tests.runs.selection_test import make_run


def curves(figure):
    (axes,) = figure.axes
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def test_loss_curve_marks_the_chosen_checkpoints(tmp_path):
    run = make_run(tmp_path / "a", [4.0, 2.0, 1.0])
    found = curves(plots.loss_curve(run, run.select([0, 2])))
    assert found["loss"].tolist() == [[1, 4], [2, 2], [3, 1]]
    assert found["2 chosen checkpoints"].tolist() == [[1, 4], [3, 1]]
    assert list(curves(plots.loss_curve(run))) == ["loss"]
    with pytest.raises(ValueError, match="Received: 'val_loss'"):
        plots.loss_curve(run, metric="val_loss")
    other = make_run(tmp_path / "b", [4.0, 2.0, 1.0, 0.5])
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


def test_bars_count_the_wrong_labels_of_each_class_among_the_first():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 0, 1, 2])
    wrong = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    scores = {
        "all of them": wrong.astype(float),
        "none": 1 - wrong.astype(float),
    }
    figure = plots.mislabeled_by_class(scores, labels, wrong, share=0.4)
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[1, 2, 1], [0, 0, 0]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["all of them: 4 of 4", "none: 0 of 4"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*"012"]
    with pytest.raises(ValueError, match=r"lengths \[9, 10\]"):
        plots.mislabeled_by_class(scores, labels[1:], wrong)
    with pytest.raises(ValueError, match="Received: 2"):
        plots.mislabeled_by_class(scores, labels, wrong, share=2)
