"""What replays without random subsets say about scores."""

import math

import numpy as np
import pytest
import scipy.stats

import keras_tracin as kt
from keras_tracin.methods.unrolled.smoothness import Smoothness, random_subsets
from tests.error_rows import row
from tests.methods.unrolled.helpers import QUERIES, make_model, recorded


def correlated(rho, queries, trainings, seed=0):
    """Normal `predicted` and `real`, `[m, r]`, independent but for ρ."""
    random = np.random.default_rng(seed)
    first, second = random.normal(size=(2, queries, trainings))
    return first, rho * first + math.sqrt(1 - rho**2) * second


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.4, 0.8, 0.95])
@pytest.mark.parametrize("replays", [2, 3, 6])
def test_few_replays_tell_the_correlation_over_many(rho, replays):
    few = Smoothness.of(*correlated(rho, 20_000, replays), share=0.1)
    many = correlated(rho, 20, 10_000)
    spearman = [
        scipy.stats.spearmanr(*pair).statistic
        for pair in zip(*many, strict=True)
    ]
    assert few.rank_correlation == pytest.approx(np.mean(spearman), abs=0.03)
    assert (few.replays, few.num_queries, few.share) == (replays, 20_000, 0.1)


def test_agreement_is_the_mean_of_kendalls_taus():
    predicted, real = correlated(0.5, 7, 4)
    taus = [
        scipy.stats.kendalltau(*pair).statistic
        for pair in zip(predicted, real, strict=True)
    ]
    result = Smoothness.of(predicted, real, share=0.2)
    assert result.agreement == pytest.approx((1 + np.mean(taus)) / 2)


def test_only_the_order_within_a_query_counts():
    predicted, real = correlated(0.7, 6, 5)
    expected = Smoothness.of(predicted, real, share=0.1)
    shifted = 3 * predicted + np.arange(6)[:, np.newaxis]
    assert Smoothness.of(shifted, np.exp(real), share=0.1) == expected


def test_intervals_hold_the_correlation_about_as_often_as_they_say():
    """Here queries share most of what subsets do to them, as they may."""
    random = np.random.default_rng(3)
    held = 0
    for seed in range(200):
        predicted, real = correlated(0.7, 10, 6, seed)
        common = correlated(0.7, 1, 6, seed + 1000)
        predicted, real = predicted + common[0], real + common[1]
        low, high = Smoothness.of(predicted, real, 0.1).interval
        held += low <= 6 / math.pi * math.asin(0.35) <= high
    assert held >= 180
    # Two replays allow no estimate of what others would say.
    two = Smoothness.of(*random.normal(size=(2, 5, 2)), share=0.1)
    assert two.interval == (-1.0, 1.0)
    one = Smoothness.of(*correlated(0.9, 1, 5), share=0.1)
    assert one.interval[0] < one.rank_correlation


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_replay_that_diverged_is_an_error(wrong):
    predicted, real = correlated(0.7, 6, 5)
    real[2, 3] = wrong
    with pytest.raises(ValueError, match=row("smoothness-diverged", "1 of 5")):
        Smoothness.of(predicted, real, share=0.1)
    with pytest.raises(ValueError, match="finite scores"):
        Smoothness.of(real, predicted, share=0.1)


@pytest.mark.parametrize(
    ("rho", "words"), [(0.98, "very well"), (0.8, "well"), (0.0, "poorly")]
)
def test_it_is_said_in_words(rho, words):
    said = str(Smoothness.of(*correlated(rho, 4000, 3), share=0.1))
    assert f"removals of 0.1 of the training examples {words}: at" in said
    assert "3 replays" in said
    assert "of 12,000 comparisons" in said


def test_subsets_are_random_of_one_size_and_repeatable():
    subsets = random_subsets(30, 0.1, 4, seed=2)
    assert set(subsets.ravel()) == {0.0, 1.0}
    assert subsets.sum(axis=1).tolist() == [3.0] * 4
    assert len(np.unique(subsets, axis=0)) == 4
    np.testing.assert_array_equal(subsets, random_subsets(30, 0.1, 4, seed=2))
    assert (subsets != random_subsets(30, 0.1, 4, seed=3)).any()


@pytest.fixture(scope="module")
def unrolled(tmp_path_factory):
    model = make_model("sgd", dtype="float32")
    model.optimizer.learning_rate = 0.3
    return recorded(model, tmp_path_factory.mktemp("run"))


def test_it_compares_scores_with_replays(unrolled):
    scores = unrolled.influence(QUERIES, verbose=0)
    result = unrolled.smoothness(QUERIES, share=0.2, replays=4, seed=5)
    subsets = random_subsets(30, 0.2, 4, seed=5)
    real = unrolled.retrain(QUERIES, 1 - subsets)
    taus = [
        scipy.stats.kendalltau(*pair).statistic
        for pair in zip(scores.scores @ subsets.T, real.T, strict=True)
    ]
    assert result.agreement == pytest.approx((1 + np.mean(taus)) / 2)
    assert result.rank_correlation > 0.8  # it is a small and smooth training
    again = unrolled.smoothness(
        QUERIES, share=0.2, replays=4, seed=5, scores=scores
    )
    assert again == result
    opposite = kt.Attribution(
        -scores.scores, scores.query_ids, scores.train_ids
    )
    worst = unrolled.smoothness(QUERIES, share=0.2, scores=opposite)
    assert worst.rank_correlation < -0.5


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0, -0.1, math.nan])
def test_shares_of_none_or_all_are_refused(unrolled, share):
    with pytest.raises(ValueError, match=row("no-subset")):
        unrolled.smoothness(QUERIES, share=share)


def test_one_replay_is_refused(unrolled):
    with pytest.raises(ValueError, match=row("one-replay")):
        unrolled.smoothness(QUERIES, replays=1)


def test_scores_of_some_examples_are_judged_by_subsets_of_them(unrolled):
    some = np.arange(10, 30)[::-1]
    scores = unrolled.influence(QUERIES, verbose=0)
    part = kt.Attribution(scores.scores[:, some], scores.query_ids, some)
    result = unrolled.smoothness(QUERIES, share=0.25, scores=part)
    counts = np.ones((5, 30))
    counts[:, some] -= random_subsets(20, 0.25, 5, seed=0)
    assert (counts[:, :10] == 1).all()
    predicted = scores.scores @ (1 - counts).T
    real = unrolled.retrain(QUERIES, counts).T
    assert result == Smoothness.of(predicted, real, share=0.25)
    among = unrolled.among(some).smoothness(QUERIES, share=0.25)
    assert among.agreement > 0.7


def test_scores_of_others_are_refused(unrolled):
    scores = unrolled.influence(QUERIES, verbose=0)
    fewer = tuple(part[:3] for part in QUERIES)
    with pytest.raises(
        ValueError, match=row("smoothness-queries", "expected 3")
    ):
        unrolled.smoothness(fewer, scores=scores)
    foreign = kt.Attribution(
        scores.scores, scores.query_ids, scores.train_ids + 1
    )
    with pytest.raises(ValueError, match=row("unknown-scored", "[30]")):
        unrolled.smoothness(QUERIES, scores=foreign)


def test_equal_losses_tell_nothing():
    predicted = np.random.default_rng(0).normal(size=(4, 5))
    told = Smoothness.of(predicted, np.ones([4, 5]), share=0.1)
    assert told.interval == pytest.approx((-1, 1))
