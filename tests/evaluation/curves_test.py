"""Trainings on growing parts of the data, against slow and obvious twins."""

import keras
import numpy as np
import pandas as pd
import pytest

import keras_tracin as kt
from keras_tracin import evaluation, plots
from tests.error_rows import row
from tests.gradients.oracle import sequential
from tests.points import CROSSENTROPY, examples

N = 20
TRAIN, TEST = examples(N, 0), examples(9, 1)
SCORES = np.round(np.random.default_rng(2).normal(size=N), 1)
IDS = np.array([f"n{i:02}" for i in np.random.default_rng(3).permutation(N)])


class Fit:
    """Sets weights that depend on the examples, and counts how often."""

    def __init__(self, loss=CROSSENTROPY):
        self.model = sequential((4,), keras.layers.Dense(3, use_bias=False))
        self.model.compile(loss=loss)
        self.seen = []

    def __call__(self, train, seed):
        x, y = train
        self.seen.append((x[:, 0].tolist(), seed))
        chance = np.random.default_rng(seed).normal(size=(4, 3))
        self.model.layers[0].kernel.assign(x.T @ np.eye(3)[y] + 0.1 * chance)
        return self.model


def accuracy(rows, seed):
    x, y = (part[rows] for part in TRAIN)
    chance = np.random.default_rng(seed).normal(size=(4, 3))
    logits = TEST[0] @ (x.T @ np.eye(3)[y] + 0.1 * chance)
    return (logits.argmax(axis=1) == TEST[1]).mean()


def curve(kind, directory, scores=SCORES, fit=None, **options):
    call = getattr(evaluation, f"{kind}_curve")
    options = {"shares": (0.1, 0.5), "seeds": (4, 7), "verbose": 0, **options}
    named = scores if isinstance(scores, dict) else {"own": scores}
    train = options.pop("train", TRAIN)
    return call(fit or Fit(), train, TEST, named, directory, **options)


@pytest.mark.parametrize("kind", ["removal", "selection"])
def test_each_point_is_the_metric_after_training_on_its_part(kind, tmp_path):
    found = curve(kind, tmp_path, draws=2)
    order = sorted(range(N), key=lambda i: (-SCORES[i], i))
    for i, count in enumerate((2, 10)):
        first = np.isin(np.arange(N), order[:count])
        rows = first if kind == "selection" else ~first
        for j, seed in enumerate((4, 7)):
            assert found.values["own"][i, j] == pytest.approx(
                accuracy(rows, seed)
            )
            for d in range(2):
                rng = np.random.default_rng([seed, d])
                drawn = np.isin(np.arange(N), rng.permutation(N)[:count])
                rows = drawn if kind == "selection" else ~drawn
                assert found.random_each[i, j, d] == pytest.approx(
                    accuracy(rows, seed)
                )
                rows = first if kind == "selection" else ~first
    everything = [accuracy(np.ones(N, bool), seed) for seed in (4, 7)]
    np.testing.assert_allclose(found.everything, everything)
    np.testing.assert_allclose(
        found.values["random"], found.random_each.mean(axis=2)
    )


def test_scores_may_come_in_any_form(tmp_path):
    train = kt.with_ids(TRAIN, IDS).batch(6)
    order = np.argsort(-SCORES, kind="stable")
    falling = np.arange(N, 0, -1.0)
    issues = kt.LabelIssues(IDS[order], falling, 3, "loss")
    shuffled = np.random.default_rng(5).permutation(N)
    scores = {
        "array": SCORES,
        "by id": dict(zip(IDS[shuffled], SCORES[shuffled], strict=True)),
        "series": pd.Series(SCORES[shuffled], index=IDS[shuffled]),
        "own": kt.SelfInfluence(SCORES, IDS),
        "ranked": issues,
    }
    found = curve("removal", tmp_path, scores, train=train)
    for name in scores:
        np.testing.assert_array_equal(
            found.values[name], found.values["array"], name
        )
    by_id = dict(zip(IDS.tolist(), SCORES, strict=True))
    half = kt.select_examples(by_id, 0.5)
    kept = curve(
        "selection", tmp_path, {"half": half, "by id": by_id}, train=train
    )
    assert kept.values["half"].shape == kept.values["by id"].shape
    # Of the ten highest there is one set, whatever the order of equal ones.
    assert (kept.values["half"][1] == kept.values["by id"][1]).all()


def test_what_is_there_is_not_trained_again(tmp_path):
    fit = Fit()
    first = curve("removal", tmp_path, fit=fit)
    assert len(fit.seen) == 2 * (1 + 2 + 2)
    fit.seen.clear()
    again = curve("removal", tmp_path, fit=fit, shares=(0.1, 0.5, 0.2))
    assert len(fit.seen) == 2 * 2
    np.testing.assert_array_equal(again.values["own"][:2], first.values["own"])
    fit.seen.clear()
    curve("removal", tmp_path, fit=fit, config={"epochs": 3})
    assert len(fit.seen) == 10


def test_an_interrupted_call_goes_on(tmp_path):
    class Interrupted(Fit):
        def __call__(self, train, seed):
            if len(self.seen) == 4:
                raise KeyboardInterrupt
            return super().__call__(train, seed)

    with pytest.raises(KeyboardInterrupt):
        curve("selection", tmp_path / "a", fit=Interrupted())
    fit = Fit()
    found = curve("selection", tmp_path / "a", fit=fit)
    assert len(fit.seen) == 6
    whole = curve("selection", tmp_path / "b")
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)


def test_other_metrics(tmp_path):
    losses = curve("removal", tmp_path, metric="loss")
    model = Fit()(TRAIN, 4)
    expected = CROSSENTROPY(TEST[1], model(TEST[0])).numpy()
    assert losses.everything[0] == pytest.approx(expected, rel=1e-5)

    def first_weight(model, test):
        assert test is TEST
        return model.layers[0].kernel.numpy()[0, 0]

    found = curve("removal", tmp_path, metric=first_weight)
    assert found.metric == "first_weight"
    kernel = model.layers[0].kernel.numpy()
    assert found.everything[0] == pytest.approx(kernel[0, 0])


def test_means_intervals_and_differences():
    own = np.array([[0.5, 0.7, 0.9], [0.2, 0.2, 0.2]])
    random = np.array([[0.4, 0.5, 0.6], [0.1, 0.1, 0.4]])
    curves = evaluation.RetrainingCurves(
        "kept",
        "accuracy",
        np.array([0.1, 0.2]),
        {"own": own, "random": random},
        random[..., None],
        np.ones(3),
    )
    np.testing.assert_allclose(curves.mean("own"), [0.7, 0.2])
    # t of two degrees of freedom is 4.3027, the standard deviation 0.2.
    half = 4.3027 * 0.2 / np.sqrt(3)
    np.testing.assert_allclose(curves.interval("own"), [half, 0], 1e-4, 1e-9)
    mean, half = curves.difference("own")
    np.testing.assert_allclose(mean, [0.2, 0.0], atol=1e-12)
    assert half[0] == pytest.approx(4.3027 * 0.1 / np.sqrt(3), rel=1e-4)
    frame = curves.to_dataframe()
    assert len(frame) == 3 + 6 + 6
    mine = frame[(frame.scores == "own") & (frame.share == 0.1)]
    assert mine.accuracy.tolist() == [0.5, 0.7, 0.9]
    figure = plots.retraining_curves(curves)
    lines = figure.axes[0].get_lines()
    assert [line.get_label() for line in lines] == [
        "own",
        "random",
        "all examples",
    ]
    np.testing.assert_allclose(lines[0].get_ydata(), curves.mean("own"))


def test_they_show_their_means():
    values = {"own": np.array([[0.5, 0.7], [0.25, 0.25]])}
    curves = evaluation.RetrainingCurves(
        "removed",
        "accuracy",
        np.array([0.1, 0.5]),
        values,
        np.zeros([2, 2, 1]),
        np.array([0.75, 0.85]),
    )
    assert repr(curves) == (
        "<RetrainingCurves: accuracy with 10%, 50% removed, mean of 2 seeds: "
        "all examples 0.800; own 0.600, 0.250>"
    )


def test_curves_of_several_calls_are_those_of_one(tmp_path):
    parts = [curve("removal", tmp_path, seeds=(seed,)) for seed in (4, 7)]
    found = evaluation.RetrainingCurves.concat(parts)
    whole = curve("removal", tmp_path)
    for name, values in whole.values.items():
        np.testing.assert_array_equal(found.values[name], values)
    np.testing.assert_array_equal(found.everything, whole.everything)
    assert np.isnan(parts[0].interval("own")).all()
    other = curve("removal", tmp_path, {"other": SCORES}, seeds=(4,))
    for unlike in ([], [parts[0], other]):
        with pytest.raises(ValueError, match=row("curve-parts")):
            evaluation.RetrainingCurves.concat(unlike)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": {"random": SCORES}}, row("curve-names")),
        ({"scores": {"own": SCORES[1:]}}, row("curve-count")),
        ({"scores": {"own": np.full(N, np.nan)}}, row("curve-nan")),
        ({"shares": (0.1, 1.0)}, row("curve-shares")),
        ({"shares": ()}, row("curve-shares")),
        ({"draws": 0}, row("curve-draws")),
        ({"metric": "auc"}, row("curve-metric")),
        ({"seeds": ()}, "hold a seed"),
        (
            {"scores": {"own": dict.fromkeys(range(1, N + 1), 0.0)}},
            "no example of",
        ),
        (
            {"scores": {"own": kt.select_examples(SCORES, 9)}},
            row("curve-length"),
        ),
        (
            {"scores": {"own": kt.LabelIssues(np.arange(N), -SCORES, 2, "a")}},
            row("curve-issues"),
        ),
    ],
)
def test_what_does_not_fit_is_refused(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        curve("selection", tmp_path, **options)


def test_scores_of_queries_are_refused(tmp_path):
    scores = kt.Attribution(SCORES[None], np.arange(1), np.arange(N))
    with pytest.raises(TypeError, match=row("curve-queries")):
        curve("removal", tmp_path, scores)


def test_a_regression_has_no_accuracy(tmp_path):
    class Regression(Fit):
        def __call__(self, train, seed):
            model = sequential((4,), keras.layers.Dense(1))
            model.compile(loss="mse")
            return model

    numbers = [y[:, None].astype("float32") for _, y in (TRAIN, TEST)]
    train, test = (TRAIN[0], numbers[0]), (TEST[0], numbers[1])
    scores, call = {"own": SCORES}, evaluation.removal_curve
    with pytest.raises(ValueError, match=row("curve-regression")):
        call(Regression(), train, test, scores, tmp_path, verbose=0)
