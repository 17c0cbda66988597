"""Models that were not trained on an example judge its label."""

import dataclasses

import keras
import numpy as np
import pytest
import scipy.special
from scipy.stats import rankdata

import keras_tracin as kt
from keras_tracin.evaluation import flip_labels, mislabel_detection
from keras_tracin.labels.folds import Folds
from tests.error_rows import row
from tests.points import CROSSENTROPY
from tests.states import state

N = 120
RNG = np.random.default_rng(0)
RIGHT = RNG.integers(0, 3, N)
X = (RNG.normal(scale=0.6, size=[N, 3]) + 2 * np.eye(3)[RIGHT]).astype(
    "float32"
)
Y = flip_labels(RIGHT, 0.1)


def build():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.1), CROSSENTROPY)
    return model


class Fit:
    """Trains two epochs, and notes what was predicted after each."""

    def __init__(self, fails_at=None):
        self.trained, self.fails_at = [], fails_at

    def __call__(self, model, train, callbacks):
        if self.fails_at == len(self.trained):
            raise KeyboardInterrupt
        seen = []

        def note(epoch, logs):
            p = scipy.special.softmax(model.predict(X, verbose=0), axis=1)
            seen.append(p)

        noting = keras.callbacks.LambdaCallback(on_epoch_end=note)
        options = {"epochs": 2, "batch_size": 20, "verbose": 0}
        model.fit(*train, callbacks=[*callbacks, noting], **options)
        self.trained.append((train, np.mean(seen, axis=0)))


@pytest.fixture(scope="module")
def trained():
    """What three folds measured, and what they were trained on."""
    model, fit = build(), Fit()
    before = state(model)
    copies = Folds(3, fit).measure(model, (X, Y))
    assert state(model) == before
    return copies, fit.trained


def test_each_example_is_judged_by_the_model_that_has_not_seen_it(trained):
    copies, trainings = trained
    outside = copies.out_of_fold
    assert len(trainings) == 3
    judged = np.zeros(N, int)
    for (x, y), p in trainings:
        held_out = ~(X[:, None] == x).all(-1).any(1)
        assert len(x) == len(y) == N - held_out.sum()
        # Folds hold about as many of each label.
        assert np.ptp(np.bincount(Y[held_out])) <= np.ptp(np.bincount(Y)) + 2
        judged += held_out
        np.testing.assert_allclose(
            outside.mean_probabilities[held_out], p[held_out], atol=1e-5
        )
    assert (judged == 1).all()
    own = outside.mean_probabilities[np.arange(N), Y]
    np.testing.assert_allclose(outside.confidence, own, atol=1e-5)
    assert outside.given_labels.tolist() == Y.tolist()


def test_all_examples_are_looked_at_by_all_copies(trained):
    copies, trainings = trained
    for copy, (_, p) in zip(copies.copies, trainings, strict=True):
        assert copy.epochs.tolist() == [1, 2]
        np.testing.assert_allclose(copy.mean_probabilities, p, atol=1e-5)
        np.testing.assert_allclose(copy.early_probabilities, p, atol=1e-5)
    for fold, copy in enumerate(copies.copies):
        losses = copy.loss[:, copies.fold_of == fold].mean(axis=1)
        assert copy.held_out_loss.tolist() == losses.tolist()


def test_scores_are_split_by_whether_the_example_was_new(trained):
    copies, _ = trained
    scores = np.random.default_rng(0).random([3, N])
    outside, inside = copies.split(scores)
    for row_, fold in enumerate(copies.fold_of):
        others = [scores[c, row_] for c in range(3) if c != fold]
        assert outside[row_] == scores[fold, row_]
        assert inside[row_] == pytest.approx(np.mean(others))
    errors = np.array([copy.error for copy in copies.copies])
    expected = [
        np.sqrt(np.mean(errors[fold, :, at] ** 2))
        for at, fold in enumerate(copies.fold_of)
    ]
    np.testing.assert_allclose(copies.out_of_fold.error[0], expected, rtol=1e-5)
    order = np.random.default_rng(1).permutation(N)
    again = copies.reordered(copies.ids[order])
    np.testing.assert_array_equal(again.fold_of, copies.fold_of[order])
    np.testing.assert_array_equal(
        again.out_of_fold.loss, copies.out_of_fold.loss[:, order]
    )
    assert "120 examples, 3 copies" in repr(again)


def test_finished_folds_are_kept(trained, tmp_path):
    interrupted = Fit(fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        Folds(3, interrupted, directory=tmp_path).measure(build(), (X, Y))
    rest = Fit()
    Folds(3, rest, directory=tmp_path).measure(build(), (X, Y))
    assert len(rest.trained) == 1
    order = np.random.default_rng(1).permutation(N)  # as another reading
    shuffled = kt.with_ids((X[order], Y[order]), order).batch(7)
    none = Fit(fails_at=0)
    again = Folds(3, none, directory=tmp_path).measure(build(), shuffled)
    assert again.ids.tolist() == list(range(N))
    # Other data is trained on anew.
    with pytest.raises(KeyboardInterrupt):
        Folds(3, none, directory=tmp_path).measure(build(), (X + 1, Y))


def test_folds_and_run_are_joined_by_ranks(tmp_path):
    model, recorder = build(), kt.TracInCheckpoint(tmp_path / "run")
    model.fit(X, Y, epochs=3, batch_size=25, verbose=0, callbacks=[recorder])
    names = np.array([f"image-{number}" for number in range(N)])
    train = kt.with_ids((X, Y), names).batch(16)
    issues = kt.find_label_issues(
        model, train, tmp_path / "run", folds=2, verbose=0
    )
    wrong = dict(zip(names.tolist(), Y != RIGHT, strict=True))
    assert mislabel_detection(issues, wrong).auc > 0.97
    assert issues.num_issues == pytest.approx(12, abs=5)
    assert "3 checkpoints and 2 copies in and out of fold" in issues.reasons[0]
    assert issues.reasons[1].endswith("out of fold")
    given = dict(zip(names.tolist(), Y.tolist(), strict=True))
    assert [given[n] for n in issues.ids] == issues.given_labels.tolist()


def test_folds_alone_need_no_run(trained):
    issues = kt.find_label_issues(
        build(), (X, Y), folds=3, fit=Fit(), verbose=0
    )
    assert "of 3 copies in and out of fold, since" in repr(issues)


def test_a_run_without_a_held_out_loss_takes_that_of_the_folds(trained):
    copies, _ = trained
    losses = np.mean([copy.held_out_loss for copy in copies.copies], axis=0)
    run = dataclasses.replace(copies.copies[0], held_out_loss=None)
    known = dataclasses.replace(run, held_out_loss=losses)
    issues = kt.LabelIssues.from_dynamics(run, folds=copies)
    assert issues.method == "best_loss + best_aum"
    expected = kt.LabelIssues.from_dynamics(known, folds=copies)
    np.testing.assert_array_equal(issues.scores, expected.scores)
    longer = dataclasses.replace(run, epochs=np.array([1, 3]))
    issues = kt.LabelIssues.from_dynamics(longer, folds=copies)
    assert issues.method == "mean_loss + aum"


def test_ranks_of_the_run_and_of_copies_are_averaged(trained):
    copies, _ = trained
    run = copies.copies[0]  # as if it were another
    issues = kt.LabelIssues.from_dynamics(run, "aum", folds=copies)
    margins = np.array([c.margin.mean(axis=0) for c in copies.copies])
    ranks = {"run": rankdata(-margins[0])}
    fold = copies.fold_of
    outside = margins[fold, np.arange(N)]
    ranks["outside"] = rankdata(-outside)
    ranks["inside"] = rankdata(-(margins.sum(axis=0) - outside))
    expected = np.mean(list(ranks.values()), axis=0) / N
    np.testing.assert_allclose(issues.scores, expected[issues.ids])


class Tied(keras.Model):
    """A model that cannot be copied."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def call(self, x):
        return self.layer(x)


def test_folds_that_cannot_be_trained_are_refused():
    model = build()

    def measure(model, folds, **options):
        kt.find_label_issues(model, (X, Y), folds=folds, verbose=0, **options)

    for folds in (1, -1, 2.5, True):
        with pytest.raises(ValueError, match=row("folds")):
            measure(model, folds, fit=Fit())
    with pytest.raises(ValueError, match=row("folds-examples")):
        measure(model, N + 1, fit=Fit())
    with pytest.raises(ValueError, match=row("folds-fit")):
        measure(model, 3)
    with pytest.raises(ValueError, match=row("folds-no-function")):
        measure(model, 3, fit="fit")
    with pytest.raises(ValueError, match=row("folds-callbacks")):
        measure(model, 3, fit=lambda model, train, callbacks: None)
    with pytest.raises(ValueError, match=row("folds-unasked")):
        measure(model, 0, fit=Fit())
    tied = Tied(keras.layers.Dense(3))
    tied.compile("sgd", CROSSENTROPY)
    with pytest.raises(ValueError, match=row("folds-copy")):
        measure(tied, 3, fit=Fit())
