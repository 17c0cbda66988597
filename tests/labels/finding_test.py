"""Wrong labels are found, ranked and counted."""

import dataclasses

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.evaluation import flip_labels, mislabel_detection
from tests.error_rows import row
from tests.points import CROSSENTROPY

N = 600


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Four clouds with a tenth of the labels wrong, and a run on them."""
    rng = np.random.default_rng(0)
    right = rng.integers(0, 4, N)
    x = rng.normal(scale=0.5, size=[N, 4]) + 1.5 * np.eye(4)[right]
    x, given = x.astype("float32"), flip_labels(right, 0.1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    model.compile(keras.optimizers.Adam(0.05), CROSSENTROPY)
    recorder = kt.TracInCheckpoint(tmp_path_factory.mktemp("run") / "a")
    options = {"batch_size": 20, "verbose": 0, "callbacks": [recorder]}
    model.fit(x, given, epochs=4, **options)
    return model, (x, given), right, recorder.directory


@pytest.fixture(scope="module")
def issues(digits):
    model, train, _, directory = digits
    return kt.find_label_issues(model, train, directory, verbose=0)


def test_wrong_labels_come_first_and_are_counted(digits, issues):
    _, (_, given), right, _ = digits
    wrong = dict(enumerate(given != right))
    assert mislabel_detection(issues, wrong).auc > 0.98
    assert issues.num_issues == pytest.approx(60, rel=0.2)
    assert len(issues.issue_ids) == issues.num_issues
    assert sorted(issues.ids) == list(range(N))
    assert (np.diff(issues.scores) <= 0).all()
    np.testing.assert_array_equal(issues.given_labels, given[issues.ids])


def test_suggestions_are_other_labels_of_issues_and_mostly_right(
    digits, issues
):
    _, _, right, _ = digits
    count = issues.num_issues
    suggested = issues.suggested_labels
    assert (suggested[:count] != issues.given_labels[:count]).all()
    assert (suggested == right[issues.ids])[:40].mean() > 0.9
    assert ((issues.suggested_probabilities > 0) & (suggested < 4)).all()


def test_it_says_what_was_chosen_and_why(issues):
    assert issues.method == "mean_loss + aum"
    assert "'mean_loss + aum' of 4 checkpoints, since the run" in repr(issues)
    assert "predictions are wrong, at epochs 1 and 2" in repr(issues)


def test_scores_in_reading_order_cannot_be_taken_for_ranked_ones(issues):
    with pytest.raises(ValueError, match=row("ranked-scores")):
        mislabel_detection(issues, np.zeros(N, bool))


def test_issues_are_saved_and_tabled(issues, tmp_path):
    issues.save(tmp_path / "issues.npz")
    loaded = kt.LabelIssues.load(tmp_path / "issues.npz")
    assert repr(loaded) == repr(issues)
    np.testing.assert_array_equal(loaded.issue_ids, issues.issue_ids)
    table = issues.to_dataframe()
    assert table.index.tolist() == issues.ids.tolist()
    assert table["is_issue"].sum() == issues.num_issues
    assert list(table.columns) == [
        "score",
        "given_label",
        "suggested_label",
        "suggested_probability",
        "is_issue",
    ]


def make_dynamics(**changed):
    """Four examples of two classes, of which the third has a wrong label."""
    p = np.array([[0.9, 0.6, 0.05, 0.8], [0.95, 0.7, 0.1, 0.9]])
    given = np.array([0, 1, 1, 0])
    first = np.where(given == 0, p, 1 - p)
    means = np.stack([first, 1 - first], -1).mean(0)
    return dataclasses.replace(
        kt.TrainingDynamics(
            *(np.array(["a", "b", "c", "d"]), np.array([1, 2]), "classes"),
            loss=-np.log(p),
            margin=np.log(p / (1 - p)),
            correct=(p > 0.5).astype(float),
            probability=p,
            error=np.sqrt(2) * (1 - p),
            given_labels=given,
            mean_probabilities=means,
            early_probabilities=means,
        ),
        **changed,
    )


@pytest.mark.parametrize(
    "method", ["loss", "mean_loss", "aum", "probability", "el2n"]
)
def test_each_score_puts_the_wrong_label_first(method):
    issues = kt.LabelIssues.from_dynamics(make_dynamics(), method)
    assert issues.ids.tolist() == ["c", "b", "d", "a"]
    assert issues.reasons[0] == f"ranked by '{method}' of 2 checkpoints"


def test_several_scores_are_joined_by_their_ranks():
    loss = np.array([[1.0, 2, 3, 4]] * 2)
    dynamics = make_dynamics(loss=loss, error=loss[:, [1, 0, 2, 3]])
    issues = kt.LabelIssues.from_dynamics(dynamics, ("mean_loss", "el2n"))
    assert issues.ids.tolist() == ["d", "c", "a", "b"]
    np.testing.assert_allclose(issues.scores, [1, 0.75, 0.375, 0.375])


def test_the_number_may_be_known_or_by_confident_learning():
    dynamics = make_dynamics()
    known = kt.LabelIssues.from_dynamics(dynamics, number=1)
    assert known.issue_ids.tolist() == ["c"]
    assert known.suggested_labels.tolist() == [0, 1, 0, 0]
    learnt = kt.LabelIssues.from_dynamics(dynamics, "aum", "confident_learning")
    assert learnt.num_issues == 1
    assert "by confident learning at epochs 1 and 2" in learnt.reasons[1]
    for number in ("many", 5, -1, True):
        with pytest.raises(ValueError, match=row("issues-number")):
            kt.LabelIssues.from_dynamics(dynamics, number=number)


@pytest.mark.parametrize(
    ("errors", "chosen"),
    [
        (0.05, "number by confident learning, since about 5%"),
        (0.2, "number by confident learning and disagreement"),
        (0.5, "number by disagreement among the most confident"),
    ],
)
def test_the_estimate_depends_on_how_often_the_model_is_wrong(errors, chosen):
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2, 4000)
    # Probabilities from 0.5 to 1, and the larger they are the fewer are wrong.
    confidence = rng.uniform(0.5, 1, 4000)
    is_wrong = rng.random(4000) < 2 * errors * 2 * (1 - confidence)
    p = np.where((given == 1) ^ is_wrong, confidence, 1 - confidence)
    means = np.stack([1 - p, p], axis=1)
    dynamics = make_dynamics(
        ids=np.arange(4000),
        loss=np.ones([2, 4000]),
        given_labels=given,
        mean_probabilities=means,
        early_probabilities=means,
    )
    issues = kt.LabelIssues.from_dynamics(dynamics, "loss")
    assert chosen in issues.reasons[1]


def test_the_loss_on_held_out_examples_tells_which_checkpoints_count():
    # The wrong label, that of "c", is learnt by heart at the last of five.
    loss = np.array([[3.0, 2, 2.5, 1], [1, 1.2, 2, 1.1], [1, 0.9, 3, 0.8]])
    loss = np.concatenate([loss, [[0.1, 0.3, 1, 0.2], [5, 0.2, 0, 4]]])
    dynamics = make_dynamics(
        epochs=np.arange(1, 6),
        loss=loss,
        margin=-loss,
        correct=loss,
        probability=loss,
        error=loss,
    )
    lost = kt.LabelIssues.from_dynamics(dynamics, "loss")
    assert lost.ids.tolist() == ["a", "d", "b", "c"]
    known = dataclasses.replace(
        dynamics, held_out_loss=np.array([2.0, 0.9, 0.5, 0.6, 4])
    )
    issues = kt.LabelIssues.from_dynamics(known)
    assert issues.method == "best_loss + best_aum"
    assert "where the loss on held-out examples is least" in issues.reasons[0]
    # The best fourth of five checkpoints are two.
    expected = kt.LabelIssues.from_dynamics(known.best(2), "mean_loss")
    assert issues.ids.tolist() == expected.ids.tolist() == [*"cbad"]
    with pytest.raises(ValueError, match=row("no-such-dynamics")):
        kt.LabelIssues.from_dynamics(dynamics, "best_loss")


def test_one_checkpoint_is_ranked_by_its_loss():
    dynamics = make_dynamics()
    last = dataclasses.replace(
        dynamics,
        epochs=np.array([2]),
        **{
            name: getattr(dynamics, name)[1:]
            for name in ("loss", "margin", "correct", "probability", "error")
        },
    )
    issues = kt.LabelIssues.from_dynamics(last)
    assert issues.method == "loss"
    assert "since there is one checkpoint" in issues.reasons[0]


def test_labels_of_a_regression_are_suspected_by_their_residuals(tmp_path):
    residual = np.array([[0.1, 0.2, 0.1, 9]])
    dynamics = kt.TrainingDynamics(
        *(np.arange(4), np.array([3]), "numbers"), residual, residual=residual
    )
    issues = kt.LabelIssues.from_dynamics(dynamics)
    assert issues.issue_ids.tolist() == [3]
    assert issues.suggested_labels is None
    issues.save(tmp_path / "issues.npz")
    assert kt.LabelIssues.load(tmp_path / "issues.npz").given_labels is None


def test_examples_with_several_labels_are_issues_by_any_of_them():
    rng = np.random.default_rng(0)
    given = rng.integers(0, 2, [400, 3])
    p = np.where(given == 1, 0.95, 0.05)
    wrong = np.arange(40)
    p[wrong, 0] = 1 - p[wrong, 0]
    dynamics = kt.TrainingDynamics(
        *(np.arange(400), np.array([1, 2]), "labels"),
        loss=np.where(np.arange(400) < 40, 3.0, 0.1)[np.newaxis].repeat(2, 0),
        given_labels=given,
        mean_probabilities=p,
        early_probabilities=p,
    )
    issues = kt.LabelIssues.from_dynamics(dynamics, "mean_loss")
    assert sorted(issues.ids[:40]) == wrong.tolist()
    assert issues.num_issues == pytest.approx(40, rel=0.3)
    changed = issues.suggested_labels != issues.given_labels
    assert changed[:40, 0].all()
    assert changed.sum() == 40


def test_where_two_epochs_teach_nothing_all_are_looked_at():
    rng = np.random.default_rng(0)
    count, wrong = 300, 30
    right = rng.integers(0, 3, count)
    given = right.copy()
    given[:wrong] = (right[:wrong] + 1) % 3
    # At first the model is sure of one class, and wrong where it is sure.
    early = np.tile([0.6, 0.2, 0.2], (count, 1))
    early[right != 0] = [0.8, 0.1, 0.1]
    later = 0.9 * np.eye(3)[right] + 0.1 / 3
    dynamics = kt.TrainingDynamics(
        *(np.arange(count), np.arange(1, 21), "classes"),
        loss=np.where(np.arange(count) < wrong, 3.0, 0.1)[None].repeat(20, 0),
        given_labels=given,
        mean_probabilities=0.1 * early + 0.9 * later,
        early_probabilities=early,
    )
    issues = kt.LabelIssues.from_dynamics(dynamics, "mean_loss")
    assert issues.num_issues == pytest.approx(wrong, rel=0.2)
    assert "at epochs 1 and 2 little was learnt" in issues.reasons[1]
    assert not any("too high" in reason for reason in issues.reasons)
    # Of these two epochs alone nothing better is known.
    two = dataclasses.replace(
        dynamics,
        epochs=np.array([1, 2]),
        loss=dynamics.loss[:2],
        mean_probabilities=early,
    )
    issues = kt.LabelIssues.from_dynamics(two, "mean_loss")
    assert any("too high" in reason for reason in issues.reasons)


def test_where_there_is_no_number_there_is_no_set():
    lacking = make_dynamics(early_probabilities=None)
    issues = kt.LabelIssues.from_dynamics(lacking)
    assert issues.num_issues is None
    assert "unknown number" in repr(issues)
    with pytest.raises(ValueError, match=row("no-issue-set")):
        _ = issues.issue_ids


def test_what_makes_the_number_doubtful_is_said():
    late = make_dynamics(epochs=np.array([5, 6]), given_labels=[0, 0, 1, 0])
    late = dataclasses.replace(late, given_labels=np.array([0, 0, 1, 0]))
    _, _, *doubts = kt.LabelIssues.from_dynamics(late).reasons
    assert "the first two epochs have not a checkpoint each" in doubts[0]
    assert "no other example has the label of classes [1]" in doubts[1]


def test_a_number_by_a_model_that_is_mostly_wrong_is_doubtful():
    given = np.array([1, 0, 1, 0])
    dynamics = make_dynamics(given_labels=given)
    _, _, *doubts = kt.LabelIssues.from_dynamics(dynamics).reasons
    assert "75% of these predictions disagree with the labels" in doubts[0]


def test_methods_that_cannot_be_are_refused():
    dynamics = make_dynamics()
    for method in ("entropy", (), ("loss", "auto")):
        with pytest.raises(ValueError, match=row("issues-method")):
            kt.LabelIssues.from_dynamics(dynamics, method)
    with pytest.raises(ValueError, match=row("no-such-dynamics")):
        kt.LabelIssues.from_dynamics(dynamics, "residual")
