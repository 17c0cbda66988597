"""The warning of the same training examples for every query."""

import warnings

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.methods.recurring import warn_of_recurring
from keras_tracin.results import Ranking, TopK


def _ranking(ids, sign):
    ids = np.array(ids)
    return Ranking(ids, sign * np.ones(ids.shape))


def _top(proponents, opponents, signs=(1, -1)):
    sides = map(_ranking, (proponents, opponents), signs)
    return TopK(*sides, np.arange(len(proponents)))


APART = [[0, 1], [2, 3], [4, 5]]
ALIKE = [[9, 8], [8, 9], [9, 7]]


def _warnings(top, num_train=100):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_recurring(top, num_train, "Do this.")
    return [str(warning.message) for warning in caught]


def test_overlap_is_the_mean_over_pairs_of_queries():
    # Pairs have 2, 1 and 1 of 2 in common.
    assert _ranking(ALIKE, 1).overlap == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert _ranking(APART, 1).overlap == 0
    assert np.isnan(_ranking([[1, 2]], 1).overlap)


def test_the_most_common_come_first():
    assert _ranking(ALIKE, 1).most_common(2) == {9: 3, 8: 2}
    names = [["b", "a"], ["b", "c"]]
    assert _ranking(names, 1).most_common(1) == {"b": 2}


def test_recurring_opponents_are_named():
    (message,) = _warnings(_top(APART, ALIKE))
    for part in ("opponents", "67%", "2%", "9 (3), 8 (2)", "Do this."):
        assert part in message


def test_recurring_proponents_are_named():
    (message,) = _warnings(_top(ALIKE, APART))
    assert "same proponents" in message


@pytest.mark.parametrize(
    ("top", "num_train"),
    [
        (_top(APART, APART), 100),
        (_top(ALIKE[:2], ALIKE[:2]), 100),  # two queries say little
        (_top(ALIKE, ALIKE), 3),  # two of three are in common by chance
        (_top(APART, ALIKE, signs=(1, 0)), 100),  # nothing opposes
        (_top(ALIKE, APART, signs=(-1, -1)), 100),  # nothing is in favour
    ],
)
def test_no_warning_where_it_would_mean_nothing(top, num_train):
    assert not _warnings(top, num_train)


def test_without_a_size_the_examples_in_sight_are_counted():
    assert _warnings(_top(APART, ALIKE), None)
    everything = [[0, 1], [1, 0], [0, 1]]
    assert not _warnings(_top(everything, everything), None)


@pytest.fixture(scope="module")
def outlier():
    """A linear model whose last example has a gradient like no other's."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype("float32")
    x[-1] = 50
    y = x[:, :1].copy()
    y[-1] = -1000
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, kernel_initializer="zeros")]
    )
    model.compile(keras.optimizers.SGD(1e-5), "mse")
    test = (np.abs(x[:6]) + 1, 10 + y[:6])
    return model, (x, y), test


def _top_1(method, test):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.top_k(test, k=1, verbose=0)
    return [w for w in caught if "Most queries" in str(w.message)]


def test_the_call_points_to_its_own_line_and_to_the_remedy(outlier, tmp_path):
    model, train, test = outlier
    model.fit(*train, verbose=0, callbacks=[kt.TracInCheckpoint(tmp_path)])
    (warning,) = _top_1(kt.TracIn(model, train, tmp_path), test)
    assert warning.filename == __file__
    assert "39 (6), of 6" in str(warning.message)
    assert "normalize='train'" in str(warning.message)


def test_methods_name_what_they_have(outlier):
    model, train, _ = outlier
    influence = kt.InfluenceFunctions(
        model, train, damping=1.0, curvature="gauss_newton", solver=kt.Exact()
    )
    assert "relative='loss'" in influence.against_recurring
    relative = kt.InfluenceFunctions(
        model,
        train,
        damping=1.0,
        curvature="gauss_newton",
        solver=kt.Exact(),
        relative="loss",
    )
    assert "already" in relative.against_recurring
