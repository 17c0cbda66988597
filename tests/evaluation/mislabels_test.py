"""Wrong labels, made and found."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

import keras_tracin as kt
from keras_tracin.evaluation import flip_labels, mislabel_detection

RNG = np.random.default_rng(0)
WRONG = RNG.random(200) < 0.2


def scores_with_ties():
    return np.round(RNG.normal(size=200) + WRONG, 1)


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    scores = scores_with_ties()
    found = mislabel_detection(scores, WRONG)
    assert found.auc == pytest.approx(roc_auc_score(WRONG, scores), abs=1e-12)


def test_recall_and_precision_count_what_was_inspected():
    found = mislabel_detection([5.0, 9.0, 1.0, 7.0], [1, 0, 0, 1])
    assert found.ids.tolist() == [1, 3, 0, 2]
    assert found.recall.tolist() == [0, 0, 0.5, 1, 1]
    np.testing.assert_allclose(found.precision, [0, 1 / 2, 2 / 3, 2 / 4])
    assert (found.recall_at(0.5), found.precision_at(0.5)) == (0.5, 0.5)
    assert found.recall_at(0) == 0
    table = found.to_dataframe()
    assert table.loc[3].tolist() == [0, True, 1, pytest.approx(2 / 3)]


def test_equal_scores_keep_their_order():
    found = mislabel_detection([1.0, 1.0, 2.0, 1.0], [0, 1, 0, 0])
    assert found.ids.tolist() == [2, 0, 1, 3]


def test_ids_find_their_truth():
    scores = kt.SelfInfluence(np.array([3.0, 1.0]), np.array(["b", "a"]))
    found = mislabel_detection(scores, {"a": False, "b": True, "c": True})
    assert found.ids.tolist() == ["b", "a"]
    assert found.auc == 1
    with pytest.raises(ValueError, match=r"lacks \['a'\]"):
        mislabel_detection(scores, {"b": True})
    table = pd.Series([3.0, 1.0], index=["b", "a"])
    assert mislabel_detection(table, {"a": False, "b": True}).auc == 1
    assert mislabel_detection(table, {"a": True, "b": False}).auc == 0


@pytest.mark.parametrize(
    ("scores", "wrong", "message"),
    [
        ([1.0, 2.0], [True], r"shape \(2,\).*shape \(1,\)"),
        ([[1.0], [2.0]], [True, False], r"shape \(2, 1\)"),
        ([1.0, np.nan], [True, False], r"NaN at positions \[1\]"),
        ([1.0, 2.0], [True, True], "2 of 2 true"),
        ([1.0, 2.0], [False, False], "0 of 2 true"),
    ],
)
def test_what_cannot_be_compared_is_refused(scores, wrong, message):
    with pytest.raises(ValueError, match=message):
        mislabel_detection(scores, wrong)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_from_0_to_1(share):
    found = mislabel_detection([1.0, 2.0], [True, False])
    with pytest.raises(ValueError, match="from 0 to 1"):
        found.recall_at(share)


def test_a_share_of_the_labels_moves_to_any_other_class():
    labels = np.repeat(np.arange(4), 500)
    flipped = flip_labels(labels, 0.25, seed=1)
    changed = flipped != labels
    assert changed.sum() == 500
    moves = np.zeros((4, 4), int)
    np.add.at(moves, (labels[changed], flipped[changed]), 1)
    # About 42 of each of the twelve moves, none to the class itself.
    assert (np.diag(moves) == 0).all()
    assert moves[~np.eye(4, dtype=bool)].min() > 20
    np.testing.assert_array_equal(flipped, flip_labels(labels, 0.25, seed=1))
    assert (flipped != flip_labels(labels, 0.25, seed=2)).any()
    assert labels[changed].tolist() != flipped[changed].tolist()


def test_the_likeliest_wrong_class_is_taken():
    labels = np.array([0, 1, 2])
    scores = np.array([[9.0, 1, 2], [3, 9, 4], [5, 4, 9]])
    assert flip_labels(labels, 1, scores=scores).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        ([0.5, 1.0], {}, "whole numbers"),
        ([], {}, "whole numbers"),
        ([0, 1], {"share": 0}, "above 0.*Received: 0"),
        ([0, 0], {}, "two classes or more"),
        ([0, 3], {"num_classes": 3}, "from 0 to 2.*from 0 to 3"),
        ([0, 1], {"scores": np.ones((2, 3))}, r"\(2, 2\).*\(2, 3\)"),
    ],
)
def test_what_cannot_be_flipped_is_refused(labels, options, message):
    labels = np.array(labels, float if 0.5 in labels or not labels else int)
    with pytest.raises(ValueError, match=message):
        flip_labels(labels, **{"share": 0.5, **options})
