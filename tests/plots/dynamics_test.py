"""What the map of training dynamics draws."""

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin import plots
from tests.error_rows import row

P = np.array([[0.2, 0.9, 0.1], [0.6, 0.7, 0.1]])


def make_dynamics(**more):
    return kt.TrainingDynamics(
        *(np.array(["a", "b", "c"]), np.array([1, 2]), "classes"),
        loss=-np.log(P),
        **more,
    )


def test_examples_stand_at_the_mean_and_deviation_of_their_probability():
    dynamics = make_dynamics(probability=P, correct=(P > 0.5).astype(float))
    figure = plots.data_map(dynamics, {"a": False, "b": False, "c": True})
    axes, bar = figure.axes
    points, marks = axes.collections
    expected = np.stack([P.std(0), P.mean(0)], axis=1)
    np.testing.assert_allclose(points.get_offsets(), expected)
    np.testing.assert_allclose(points.get_array(), [0.5, 1, 0])
    np.testing.assert_allclose(marks.get_offsets(), expected[2:])
    assert axes.get_legend().get_texts()[0].get_text() == "wrong labels (1)"
    assert "predict the label" in bar.get_ylabel()


def test_a_regression_has_no_map():
    with pytest.raises(ValueError, match=row("no-such-dynamics")):
        plots.data_map(make_dynamics())
