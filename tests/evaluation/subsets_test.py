"""Training on subsets, and the linear datamodeling score, on small twins."""

import keras
import numpy as np
import pytest
import scipy.stats

import keras_tracin as kt
from keras_tracin import evaluation
from tests.gradients.oracle import precision, sequential

COUNT, QUERIES = 16, 4
NOISE = 0.01


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def data(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3))
    return x, x @ [[1.0], [-2.0], [0.5]] + rng.normal(size=(count, 1))


TRAIN, TEST = data(COUNT, 0), data(QUERIES, 1)


def minimum(x, y):
    """Ridge regression."""
    return np.linalg.solve(x.T @ x / len(x) + 0.2 * np.eye(3), x.T @ y / len(x))


class Fit:
    """Goes to the minimum, or near it, and counts how often."""

    def __init__(self):
        layer = keras.layers.Dense(1, use_bias=False)
        self.model = sequential((3,), layer)
        self.model.compile(loss="mse")
        self.seen = []

    def __call__(self, train, seed):
        self.seen.append((len(train[0]), seed))
        chance = np.random.default_rng(seed).normal(size=(3, 1))
        self.model.layers[0].kernel.assign(minimum(*train) + NOISE * chance)
        return self.model


def again(fit, directory, **options):
    options = {"num_subsets": 3, "verbose": 0, **options}
    return evaluation.retrain_on_subsets(fit, TRAIN, TEST, directory, **options)


def test_outputs_are_the_losses_after_training_on_the_subset(tmp_path):
    found = again(Fit(), tmp_path, seeds=(3, 5))
    assert found.masks.shape == (3, COUNT)
    assert found.masks.sum(axis=1).tolist() == [COUNT // 2] * 3
    assert len({mask.tobytes() for mask in found.masks}) == 3
    for mask, each in zip(found.masks, found.each, strict=True):
        for seed, values in zip((3, 5), each, strict=True):
            chance = np.random.default_rng(seed).normal(size=(3, 1))
            w = minimum(*(part[mask] for part in TRAIN)) + NOISE * chance
            expected = np.square(TEST[0] @ w - TEST[1])[:, 0]
            np.testing.assert_allclose(values, expected)
    np.testing.assert_allclose(found.outputs, found.each.mean(axis=1))


def test_outcomes_are_of_one_loss(tmp_path):
    def losses(delta):
        fit = Fit()
        loss = keras.losses.Huber(delta=delta)
        found = again(fit, tmp_path, seeds=(0,), loss=loss).each
        return found, len(fit.seen)

    (first, count), (second, more) = losses(5.0), losses(0.05)
    assert count == more == 3  # trained again
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_array_equal(losses(5.0)[0], first)


def test_outcomes_are_of_one_function_of_the_user(tmp_path):
    def call(delta):
        def measure(y, p):
            return keras.losses.huber(y, p, delta=delta)

        return again(Fit(), tmp_path, seeds=(0,), query_loss=measure).each

    first = call(5.0)
    np.testing.assert_array_equal(call(5.0), first)
    with pytest.raises(ValueError, match=r"another `query_loss`.*received"):
        call(0.05)


def test_what_is_there_is_not_trained_again(tmp_path):
    fit = Fit()
    first = again(fit, tmp_path, seeds=(0,))
    assert fit.seen == [(COUNT // 2, 0)] * 3
    fit.seen.clear()
    more = again(fit, tmp_path, seeds=(0, 1), num_subsets=4)
    assert fit.seen == [(8, 1)] * 3 + [(8, 0), (8, 1)]
    np.testing.assert_array_equal(more.masks[:3], first.masks)
    np.testing.assert_array_equal(more.each[:3, :1], first.each)


def test_a_training_that_was_interrupted_goes_on(tmp_path):
    class Interrupted(Fit):
        def __call__(self, train, seed):
            if len(self.seen) == 2:
                raise KeyboardInterrupt
            return super().__call__(train, seed)

    with pytest.raises(KeyboardInterrupt):
        again(Interrupted(), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    fit = Fit()
    found = again(fit, tmp_path)
    assert len(fit.seen) == 4
    whole = again(Fit(), tmp_path / "other")
    np.testing.assert_array_equal(found.each, whole.each)


@pytest.mark.parametrize(
    "changed",
    [{"config": {"epochs": 2}}, {"seed": 1}, {"share": 0.25}],
    ids=lambda changed: next(iter(changed)),
)
def test_outcomes_of_other_trainings_are_not_taken(tmp_path, changed):
    again(Fit(), tmp_path, seeds=(0,), config={"epochs": 1})
    fit = Fit()
    again(fit, tmp_path, **{"config": {"epochs": 1}, "seeds": (0,), **changed})
    assert len(fit.seen) == 3


def test_a_damaged_outcome_is_named(tmp_path):
    again(Fit(), tmp_path)
    path = sorted(tmp_path.iterdir())[0]
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        again(Fit(), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, r"above 0 and below 1.*1\.0"),
        ({"share": 0.01}, "so that subsets of 16"),
        ({"num_subsets": 1}, "two subsets"),
        ({"seeds": ()}, "hold a seed"),
        ({"seeds": (1, 1)}, r"differ.*\[1, 1\]"),
    ],
    ids=str,
)
def test_bad_options_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        again(Fit(), tmp_path, **options)


def test_a_training_that_diverges_is_named(tmp_path):
    def fit(train, seed):
        model = Fit()(train, seed)
        model.layers[0].kernel.assign(np.full((3, 1), np.nan))
        return model

    with pytest.raises(ValueError, match="subset 0 with seed 0"):
        again(fit, tmp_path)
    assert not list(tmp_path.iterdir())


def retrained(masks, outputs):
    return evaluation.Retrained(
        masks, outputs, np.arange(masks.shape[1]), np.arange(outputs.shape[2])
    )


def linear(noise=0.0, subsets=60, trainings=1):
    """Outcomes that are sums of known scores, and chance."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(QUERIES, COUNT))
    masks = rng.random((subsets, COUNT)) < 0.5
    exact = -(masks @ scores.T)
    chance = rng.normal(size=(subsets, trainings, QUERIES))
    outputs = exact[:, np.newaxis] + noise * chance * exact.std()
    found = retrained(masks, outputs)
    return kt.Attribution(scores, found.query_ids, found.train_ids), found


def test_sums_of_the_true_scores_have_a_score_of_one():
    scores, outcomes = linear()
    found = evaluation.lds(scores, outcomes, resamples=20)
    np.testing.assert_allclose(found.per_query, 1)
    assert found.mean == pytest.approx(1)
    opposite = kt.Attribution(
        -scores.scores, scores.query_ids, scores.train_ids
    )
    assert evaluation.lds(opposite, outcomes, resamples=20).mean == (
        pytest.approx(-1)
    )


def test_the_score_is_spearmans_correlation_for_each_query():
    scores, outcomes = linear(noise=1.0)
    found = evaluation.lds(scores, outcomes, resamples=200)
    sums = outcomes.masks.astype(float) @ scores.scores.T
    for query in range(QUERIES):
        expected = scipy.stats.spearmanr(
            sums[:, query], -outcomes.outputs[:, query]
        ).statistic
        assert found.per_query[query] == pytest.approx(expected)
    low, high = found.confidence_interval
    assert low < found.mean < high < 1
    assert 0.02 < high - low < 0.4
    assert f"{found.mean:.3f}" in repr(found)
    again = evaluation.lds(scores, outcomes, resamples=200)
    assert again.confidence_interval == found.confidence_interval


def test_an_interval_narrows_with_subsets():
    widths = []
    for subsets in (30, 480):
        scores, outcomes = linear(noise=2.0, subsets=subsets)
        low, high = evaluation.lds(
            scores, outcomes, resamples=200
        ).confidence_interval
        widths.append(high - low)
    assert widths[1] < 0.7 * widths[0]


def test_the_ceiling_is_what_true_scores_reach_under_chance():
    scores, outcomes = linear(noise=1.0, subsets=2000, trainings=3)
    reached = evaluation.lds(scores, outcomes, resamples=1).mean
    assert outcomes.ceiling == pytest.approx(reached, abs=0.03)
    assert reached < 0.95
    assert np.isnan(linear()[1].ceiling)


def test_a_query_that_does_not_vary_has_no_correlation():
    scores, outcomes = linear()
    flat = scores.scores.copy()
    flat[2] = 0
    found = evaluation.lds(
        kt.Attribution(flat, scores.query_ids, scores.train_ids),
        outcomes,
        resamples=5,
    )
    assert np.isnan(found.per_query).tolist() == [False, False, True, False]
    assert found.mean == pytest.approx(1)


def test_scores_that_do_not_fit_are_refused():
    scores, outcomes = linear()
    few = kt.Attribution(
        scores.scores[:, 1:], scores.query_ids, scores.train_ids[1:]
    )
    with pytest.raises(ValueError, match="of these training examples"):
        evaluation.lds(few, outcomes)
    other = kt.Attribution(
        scores.scores, scores.query_ids + 1, scores.train_ids
    )
    with pytest.raises(ValueError, match="of these queries"):
        evaluation.lds(other, outcomes)
    broken = kt.Attribution(
        scores.scores * np.nan, scores.query_ids, scores.train_ids
    )
    with pytest.raises(ValueError, match="NaN"):
        evaluation.lds(broken, outcomes)
    with pytest.raises(ValueError, match=r"between 0 and 1.*95"):
        evaluation.lds(scores, outcomes, confidence=95)


def test_influence_functions_predict_trainings_on_subsets(tmp_path):
    fit = Fit()
    fit.model.layers[0].kernel.assign(minimum(*TRAIN))
    method = kt.InfluenceFunctions(
        fit.model, TRAIN, damping=0.4, solver=kt.Exact()
    )
    scores = method.influence(TEST, verbose=0)
    outcomes = again(
        lambda train, seed: Fit()(train, seed), tmp_path, num_subsets=40
    )
    found = evaluation.lds(scores, outcomes, resamples=50)
    assert found.mean > 0.6
    assert found.confidence_interval[0] > 0.4
