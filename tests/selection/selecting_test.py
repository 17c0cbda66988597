"""Choosing examples by influence, dynamics, label issues and any scores."""

import keras
import numpy as np
import pandas as pd
import pytest

import keras_tracin as kt
from tests.error_rows import row
from tests.points import CROSSENTROPY, examples

N, M = 30, 6
RNG = np.random.default_rng(0)
IDS = np.array([f"n{i:02}" for i in RNG.permutation(N)])
SCORES = kt.Attribution(RNG.normal(size=(M, N)), np.arange(M), IDS)
LABELS = np.repeat([5, 7, 9], [18, 10, 2])
BY_ID = dict(zip(IDS.tolist(), LABELS.tolist(), strict=True))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small model with its run and its training examples."""
    directory = tmp_path_factory.mktemp("runs") / "a"
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    train = examples(N, 0)
    recorder = kt.TracInCheckpoint(directory)
    model.fit(*train, epochs=4, verbose=0, callbacks=[recorder])
    return model, train, directory


def dynamics(**more):
    rng = np.random.default_rng(2)
    fields = {
        "loss": rng.uniform(size=(4, N)),
        "error": rng.uniform(size=(4, N)),
        "correct": rng.integers(0, 2, size=(4, N)).astype(float),
        "given_labels": LABELS,
        **more,
    }
    return kt.TrainingDynamics(IDS, np.arange(1, 5), "classes", **fields)


def first(values, count):
    """The ids of the largest values."""
    order = sorted(range(N), key=lambda i: (-values[i], IDS[i]))
    return IDS[order[:count]].tolist()


def test_by_influence():
    select = kt.select_examples
    mean = SCORES.scores.mean(axis=0)
    chosen = select(SCORES, 7, strategy="mean")
    assert chosen.ids.tolist() == first(mean, 7)
    lookup = dict(zip(IDS.tolist(), mean, strict=True))
    assert chosen.scores.tolist() == [lookup[i] for i in chosen.ids.tolist()]
    assert set(chosen.reasons.tolist()) == {"mean influence"}
    assert (chosen.weights == 1).all()
    chosen = select(SCORES, 7, strategy="max")
    assert chosen.ids.tolist() == first(SCORES.scores.max(axis=0), 7)
    tasks = np.array(["a", "b"] * 3)
    means = [SCORES.scores[tasks == t].mean(axis=0) for t in "ab"]
    chosen = select(SCORES, 7, strategy="max", tasks=tasks)
    assert chosen.ids.tolist() == first(np.max(means, axis=0), 7)
    assert set(chosen.reasons.tolist()) <= {"task a", "task b"}
    chosen = select(SCORES, 1.0, strategy="mean", tasks=tasks)
    assert chosen.ids.tolist() == first(np.mean(means, axis=0), N)
    chosen = select(SCORES, 5, strategy="round_robin", tasks=tasks)
    assert chosen.ids[:1].tolist() == first(means[0], 1)
    assert chosen.reasons.tolist() == [f"task {t}" for t in "ababa"]
    turns = select(SCORES, 5, tasks=tasks)  # what is taken by default
    assert turns.ids.tolist() == chosen.ids.tolist()


def test_by_training_dynamics():
    select, own = kt.select_examples, dynamics()
    assert select(own, 0.2, strategy="hard").ids.tolist() == first(own.el2n, 6)
    easy = select(own, 6, strategy="easy").ids.tolist()
    assert easy == first(-own.el2n, 6)
    often = select(own, N, strategy="forgetting").ids.tolist()
    events, hard = own.forgetting_events, own.el2n
    key = {i: (-events[at], -hard[at]) for at, i in enumerate(IDS.tolist())}
    assert often == sorted(IDS.tolist(), key=key.get)
    plain = dynamics(error=None)
    hard_ids = select(plain, 6, strategy="hard").ids.tolist()
    assert hard_ids == first(plain.mean_loss, 6)


def test_by_label_issues_the_least_suspicious_stay():
    suspicion = -np.arange(N, dtype=float)
    issues = kt.LabelIssues(IDS, suspicion, 4, "loss")
    kept = kt.select_examples(issues, N - 4)
    assert set(kept.ids) == set(IDS) - set(issues.issue_ids)
    assert kept.ids[0] == IDS[-1]


def test_by_self_influence_and_any_scores():
    values = SCORES.scores[0]
    own = kt.SelfInfluence(values, IDS)
    select = kt.select_examples
    assert select(own, 4, strategy="hard").ids.tolist() == first(values, 4)
    assert select(own, 4, strategy="easy").ids.tolist() == first(-values, 4)
    by_position = select(values, 4).ids
    assert IDS[by_position].tolist() == first(values, 4)
    by_id = dict(zip(IDS.tolist(), values.tolist(), strict=True))
    assert select(by_id, 4).ids.tolist() == first(values, 4)
    series = pd.Series(values, index=IDS)
    assert select(series, 4).ids.tolist() == first(values, 4)


def test_by_a_method_and_its_sketches(trained):
    model, train, directory = trained
    x, y = (np.concatenate([part, part[:10]]) for part in train)
    tracin = kt.TracIn(model, (x, y), directory)
    test = examples(4, 1)
    options = {"test": test, "redundancy": tracin, "verbose": 0}
    with pytest.warns(UserWarning, match="near-duplicates of them"):
        chosen = kt.select_examples(tracin, 1.0, max_cosine=0.9999, **options)
    assert {i % N for i in chosen.ids.tolist()} == set(range(N))
    assert len(chosen) == N  # of ten pairs, either
    assert sorted(chosen.left_out_ids % N) == list(range(10))
    assert (chosen.left_out_for % N == chosen.left_out_ids % N).all()
    scores = tracin.influence(test, verbose=0)
    by_scores = kt.select_examples(scores, 10)
    plain = kt.select_examples(tracin, 10, test=test, verbose=0)
    assert plain.ids.tolist() == by_scores.ids.tolist()


def test_by_an_index_of_data_in_another_order(trained, tmp_path):
    model, train, directory = trained
    data = kt.with_ids(train, IDS).shuffle(N).batch(8)
    tracin = kt.TracIn(model, data, directory)
    index = kt.InfluenceIndex.build(tracin, tmp_path / "index")
    rows = index.rows(IDS)
    assert rows.shape[0] == N
    np.testing.assert_array_equal(index.rows(IDS[[4, 2, 4]]), rows[[4, 2, 4]])
    by_index, by_array = (
        kt.select_examples(SCORES, 8, redundancy=r, max_cosine=0.5)
        for r in (index, rows)
    )
    assert by_index.ids.tolist() == by_array.ids.tolist()
    assert len(by_index.left_out_ids) > 0
    with pytest.raises(ValueError, match=row("index-rows")):
        kt.select_examples(np.arange(5.0), 2, redundancy=index)


def test_classes_in_balance():
    select = kt.select_examples
    for labels in (LABELS, BY_ID, LABELS[:, None]):
        how = {"strategy": "mean", "balance": "equal"}
        chosen = select(SCORES, 12, labels=labels, **how)
        own = np.array([BY_ID[i] for i in chosen.ids.tolist()])
        assert np.bincount(own)[[5, 7, 9]].tolist() == [5, 5, 2]
        totals = np.bincount(own, chosen.weights)[[5, 7, 9]]
        np.testing.assert_allclose(totals, 4)  # as equal as was asked for
    mean = dict(zip(IDS.tolist(), SCORES.scores.mean(axis=0), strict=True))
    for label in (5, 7, 9):  # the best of each
        in_order = first(SCORES.scores.mean(axis=0), N)
        of_class = [i for i in in_order if BY_ID[i] == label]
        taken = chosen.ids[own == label].tolist()
        assert taken == of_class[: len(taken)]
        assert [mean[i] for i in taken] == sorted(
            (mean[i] for i in taken), reverse=True
        )
    chosen = select(dynamics(), 15, strategy="hard", balance="proportional")
    own = np.array([BY_ID[i] for i in chosen.ids.tolist()])
    assert np.bincount(own)[[5, 7, 9]].tolist() == [9, 5, 1]


def test_it_is_saved_and_read_again(tmp_path):
    rows = np.random.default_rng(3).normal(size=(N, 2))
    chosen = kt.select_examples(SCORES, 5, redundancy=rows, max_cosine=0.9)
    chosen.save(tmp_path / "chosen.npz")
    again = kt.Selection.load(tmp_path / "chosen.npz")
    assert repr(again) == repr(chosen)
    for name in ("ids", "scores", "weights", "reasons", "left_out_ids"):
        np.testing.assert_array_equal(
            getattr(again, name), getattr(chosen, name)
        )
    frame = again.to_dataframe()
    assert frame.index.tolist() == chosen.ids.tolist()
    assert frame.columns.tolist() == ["score", "weight", "reason"]
    kt.SelfInfluence(SCORES.scores[0], IDS).save(tmp_path / "other.npz")
    with pytest.raises(ValueError, match=row("another-result")):
        kt.Selection.load(tmp_path / "other.npz")


RANKED = kt.LabelIssues(IDS, -np.arange(float(N)), 4, "loss")
NAN = np.where(np.arange(N) == 3, np.nan, 1.0)


@pytest.mark.parametrize(
    ("message", "source", "options"),
    [
        *(
            (row("selection-budget"), SCORES, {"budget": budget})
            for budget in (0, -1, 31, 1.5, 0.0, True, "all")
        ),
        (row("selection-test"), SCORES, {"test": 3}),
        (row("selection-tasks"), dynamics(), {"tasks": [1]}),
        (row("selection-task-count"), SCORES, {"tasks": [1, 2]}),
        (row("selection-strategy"), SCORES, {"strategy": "hard"}),
        (row("selection-strategy"), dynamics(), {}),
        (row("selection-strategy"), dynamics(), {"strategy": "mean"}),
        (row("selection-nan", "[3]"), NAN, {}),
        (row("selection-labels"), SCORES, {"labels": LABELS}),
        (row("selection-balance"), SCORES, {"balance": "some"}),
        (row("selection-classes"), SCORES, {"balance": "equal"}),
        (
            row("selection-label-form"),
            SCORES,
            {"balance": "equal", "labels": np.eye(N)},
        ),
        (
            row("selection-beside", "`labels`"),
            SCORES,
            {"balance": "equal", "labels": LABELS[1:]},
        ),
        (
            row("selection-beside", "`redundancy`", "ranked"),
            RANKED,
            {"redundancy": np.eye(N)},
        ),
        (
            row("selection-beside", "ranked"),
            kt.SelfInfluence(-np.arange(float(N)), IDS),
            {"strategy": "hard", "redundancy": np.eye(N)},
        ),
        (
            "It lacks",
            SCORES,
            {"balance": "equal", "labels": {"n01": 1}},
        ),
        (
            row("selection-cosine"),
            SCORES,
            {"redundancy": np.eye(N), "max_cosine": 1.2},
        ),
        (row("selection-sketches"), SCORES, {"redundancy": LABELS}),
        (
            row("selection-sketch-nan"),
            SCORES,
            {"redundancy": np.full([N, 2], np.nan)},
        ),
    ],
)
def test_what_does_not_fit_is_refused(message, source, options):
    options = {"budget": 3, **options}
    with pytest.raises(ValueError, match=message):
        kt.select_examples(source, **options)


def test_a_method_needs_queries(trained):
    model, train, directory = trained
    tracin = kt.TracIn(model, train, directory)
    with pytest.raises(ValueError, match=row("selection-queries")):
        kt.select_examples(tracin, 3)


@pytest.mark.parametrize("source", ["scores", 3, np.eye(3), None])
def test_what_has_no_scores_is_refused(source):
    with pytest.raises(TypeError, match=row("selection-source")):
        kt.select_examples(source, 3)


def test_ids_that_repeat_are_refused():
    twice = kt.SelfInfluence(np.arange(3.0), np.array([1, 1, 2]))
    with pytest.raises(ValueError, match="more than once"):
        kt.select_examples(twice, 1, strategy="hard")
