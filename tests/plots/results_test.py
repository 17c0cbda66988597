"""Figures take every result that a method returns, or say which they take."""

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin import plots
from tests.error_rows import row
from tests.plots.helpers import top_of

SCORES = np.array([[1.0, -2.0, 3.0, 0.5], [2.0, 4.0, -1.0, 0.25]])
IDS = np.array(["d", "b", "c", "a"])
MANY = kt.Attribution(SCORES, np.arange(2), IDS)
ONE = kt.Attribution(SCORES[:1], np.arange(1), IDS)
OWN = kt.SelfInfluence(np.array([1.0, 4.0, 2.0, 3.0]), IDS)
TOP = top_of([["b"], ["c"]], [["a"], ["d"]])
WRONG = np.array([True, False, False, True])
BY_ID = {"d": True, "b": False, "c": False, "a": True}


def legend(figure):
    legend = figure.axes[0].get_legend()
    return [] if legend is None else [t.get_text() for t in legend.get_texts()]


@pytest.mark.parametrize(
    ("result", "names", "axis"),
    [
        (OWN, [], "Self-influence"),
        (MANY, [], "Score for 2 queries"),
        (ONE, [], "Score for a query"),
        (TOP, ["proponents: 2", "opponents: 2"], "Score for 2 queries"),
        (TOP.opponents, [], "Score"),
    ],
)
def test_every_result_has_a_distribution(result, names, axis):
    figure = plots.score_distribution(result)
    assert legend(figure) == names
    assert figure.axes[0].get_xlabel() == axis
    heights = [
        [bar.get_height() for bar in g] for g in figure.axes[0].containers
    ]
    np.testing.assert_allclose([sum(part) for part in heights], 1)


@pytest.mark.parametrize(
    ("result", "wrong", "counts"),
    [
        (OWN, WRONG, (2, 2)),
        (OWN.ranking(), BY_ID, (2, 2)),
        (MANY, WRONG, (4, 4)),
        (MANY, BY_ID, (4, 4)),
        (TOP, BY_ID, (2, 2)),
    ],
)
def test_wrong_labels_are_found_by_order_or_by_id(result, wrong, counts):
    figure = plots.score_distribution(result, wrong)
    right, wrong = counts
    assert legend(figure) == [f"right label: {right}", f"wrong label: {wrong}"]


def test_wrong_labels_stand_at_their_own_scores_for_each_query():
    figure = plots.score_distribution(MANY, WRONG)
    _, wrong = figure.axes[0].containers
    drawn = [b.get_x() for b in wrong if b.get_height()]
    width = wrong[0].get_width()
    scores = np.sort(SCORES[:, WRONG].ravel())
    np.testing.assert_allclose(drawn, scores - width / 2, atol=width)


@pytest.mark.parametrize(
    ("result", "wrong"),
    [(OWN, WRONG), (OWN, BY_ID), (OWN.ranking(), BY_ID), (OWN.scores, WRONG)],
)
def test_recall_and_classes_take_a_result_alone(result, wrong):
    (line, *_) = plots.recall_curve(result, wrong).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [0, 0, 0.5, 0.5, 1])
    labels = {"d": 0, "b": 1, "c": 1, "a": 2}
    if not isinstance(wrong, dict):
        labels = [*labels.values()]
    figure = plots.mislabeled_by_class(result, labels, wrong, share=0.5)
    assert [b.get_height() for b in figure.axes[0].patches] == [0, 0, 1]


def test_a_map_sums_the_scores_of_queries():
    places = np.arange(4.0)
    figure = plots.score_map(places, places, MANY)
    _, points = figure.axes[0].collections
    values = dict(
        zip(points.get_offsets()[:, 0], points.get_array(), strict=True)
    )
    assert values == {0: 3.0, 1: 2.0, 2: 2.0, 3: 0.75}
    by_id = dict(zip(IDS, places, strict=True))
    figure = plots.score_map(by_id, by_id, OWN.ranking())
    _, points = figure.axes[0].collections
    values = dict(
        zip(points.get_offsets()[:, 0], points.get_array(), strict=True)
    )
    assert values == {0: 1.0, 1: 4.0, 2: 2.0, 3: 3.0}


@pytest.mark.parametrize(
    ("message", "draw"),
    [
        (
            row("figure-many-queries"),
            lambda: plots.recall_curve(MANY, WRONG),
        ),
        (
            row("figure-many-queries"),
            lambda: plots.mislabeled_by_class({"a": MANY}, WRONG, WRONG),
        ),
        (
            row("figure-only-strongest"),
            lambda: plots.recall_curve(TOP, WRONG),
        ),
        (
            row("figure-only-strongest"),
            lambda: plots.score_map(WRONG, WRONG, TOP),
        ),
    ],
)
def test_results_without_a_score_for_each_example_are_refused(message, draw):
    with pytest.raises(TypeError, match=message):
        draw()


@pytest.mark.parametrize(
    ("message", "draw"),
    [
        (
            row("figure-ranked"),
            lambda: plots.score_distribution(OWN.ranking(), WRONG),
        ),
        (
            row("figure-ranked"),
            lambda: plots.score_distribution(TOP, WRONG),
        ),
        (
            row("figure-ranked"),
            lambda: plots.recall_curve(OWN.ranking(), WRONG),
        ),
        (
            row("figure-ranked"),
            lambda: plots.mislabeled_by_class(OWN.ranking(), WRONG, BY_ID),
        ),
        (
            row("figure-lacks"),
            lambda: plots.score_distribution(OWN, {"a": True}),
        ),
        (
            row("figure-array-ids"),
            lambda: plots.score_distribution(OWN.scores, BY_ID),
        ),
    ],
)
def test_labels_that_could_go_to_other_scores_are_refused(message, draw):
    with pytest.raises(ValueError, match=message):
        draw()
