"""Estimated numbers of wrong labels, on labels made wrong on purpose."""

import numpy as np
import pytest
import scipy.special

from keras_tracin.labels.confident_learning import confident_learning
from keras_tracin.labels.share_of_wrong import share_of_wrong_labels


def make_problem(count, strength, share, classes=4, seed=0, pairs=False):
    """Probabilities of a model that knows classes somewhat, and labels."""
    rng = np.random.default_rng(seed)
    right = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), right] += strength
    other = 1 if pairs else rng.integers(1, classes, count)
    given = np.where(
        rng.random(count) < share, (right + other) % classes, right
    )
    return given, scipy.special.softmax(logits, axis=1)


def test_confident_learning_counts_as_cleanlab_does():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, 200)
    logits = rng.normal(size=(200, 4))
    logits[np.arange(200), right] += 2.0
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    drawn = rng.random(200) < 0.2
    labels = np.where(drawn, rng.integers(0, 4, 200), right)
    learnt = confident_learning(labels, p)
    # What cleanlab 2.9 returns for the same.
    thresholds = [0.51585680, 0.52061777, 0.53497347, 0.54242003]
    np.testing.assert_allclose(learnt.thresholds, thresholds, rtol=1e-6)
    assert learnt.counts.tolist() == [
        [20, 3, 1, 5],
        [2, 30, 3, 3],
        [4, 3, 28, 1],
        [1, 3, 4, 36],
    ]
    assert learnt.off_diagonal.sum() == 33
    assert learnt.num_issues == 45


def test_confident_learning_takes_classes_of_one_example_and_of_none():
    labels = np.array([0, 0, 1, 1, 2])
    p = np.array([[0.9, 0.1, 0, 0]] * 2 + [[0.1, 0.9, 0, 0]] * 3)
    learnt = confident_learning(labels, p)
    assert learnt.thresholds[3] == np.inf
    assert learnt.joint.sum() == pytest.approx(5)
    # Its own probability is its class's threshold.
    assert learnt.counts[2].tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("strength", [2.0, 6.0])
def test_confident_predictions_tell_the_share_of_wrong_labels(
    share, pairs, strength
):
    # A model that is right in two examples of three, and one that always is.
    given, p = make_problem(4000, strength, share, pairs=pairs)
    estimate = share_of_wrong_labels(given, p)
    assert estimate == pytest.approx(share, abs=0.01 + 0.2 * share)


def test_a_share_can_be_estimated_from_few_examples():
    assert 0 <= share_of_wrong_labels(np.array([0]), np.array([[0.9, 0.1]])) < 1
