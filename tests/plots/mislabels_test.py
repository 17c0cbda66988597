import numpy as np
import pytest
from matplotlib.colors import to_hex

from keras_tracin import plots
from keras_tracin.plots.figures import WRONG
from keras_tracin.results import SelfInfluence


def curves(figure):
    """Points by what the legend calls their curve, the AUC left out."""
    (axes,) = figure.axes
    return {
        line.get_label().split(", AUC")[0]: line.get_xydata()
        for line in axes.lines
    }


def test_recall_counts_wrong_labels_from_the_highest_score_down():
    wrong = [False, True, False, True]
    figure = plots.recall_curve({"mine": [3.0, 4.0, 1.0, 2.0]}, wrong)
    expected = [(0, 0), (0.25, 0.5), (0.5, 0.5), (0.75, 1), (1, 1)]
    np.testing.assert_allclose(curves(figure)["mine"], expected)


def test_legend_of_recall_gives_the_area_under_the_roc_curve():
    figure = plots.recall_curve({"mine": [3, 4, 1, 2]}, [0, 1, 0, 1])
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert labels == ["mine, AUC 0.750", "ideal", "random"]


def test_recall_stands_beside_the_ideal_and_a_random_order():
    wrong = [False, True, False, False]
    found = curves(plots.recall_curve({"mine": [0, 9, 1, 2]}, wrong))
    assert set(found) == {"mine", "ideal", "random"}
    np.testing.assert_allclose(found["ideal"], [(0, 0), (0.25, 1), (1, 1)])
    np.testing.assert_allclose(found["random"][:, 0], found["random"][:, 1])


def test_recall_inspects_equal_scores_in_the_order_given():
    figure = plots.recall_curve({"flat": np.ones(40)}, np.arange(40) < 20)
    np.testing.assert_allclose(curves(figure)["flat"][20], (0.5, 1))


@pytest.mark.parametrize(
    ("scores", "wrong", "message"),
    [
        ({}, [True, False], "should hold a curve"),
        (
            {"a": [1.0]},
            [True, False],
            r"no curve 'a'.*scores of shape \(1,\)",
        ),
        ({"a": [1.0, np.nan]}, [True, False], "Scores are NaN"),
        ({"a": [1.0, 2.0]}, [False, False], "0 of 2 true"),
        ({"a": [1.0, 2.0]}, [True, True], "2 of 2 true"),
        ({"a": [1.0, 2.0]}, [[True, False]], r"shape \(1, 2\)"),
    ],
)
def test_recall_refuses_what_has_no_curve(scores, wrong, message):
    with pytest.raises(ValueError, match=message):
        plots.recall_curve(scores, wrong)


def test_bars_count_the_wrong_labels_of_each_class_among_the_first():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 0, 1, 2])
    wrong = np.array([1, 0, 1, 1, 0, 0, 1, 0, 0, 0], bool)
    scores = {
        "all of them": wrong.astype(float),
        "none": 1 - wrong.astype(float),
    }
    figure = plots.mislabeled_by_class(scores, labels, wrong, share=0.4)
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in group] for group in axes.containers]
    assert heights == [[1, 2, 1], [0, 0, 0]]
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["all of them: 4 of 4", "none: 0 of 4"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [*"012"]
    with pytest.raises(ValueError, match=r"lengths \[9, 10\]"):
        plots.mislabeled_by_class(scores, labels[1:], wrong)
    with pytest.raises(ValueError, match="Received: 2"):
        plots.mislabeled_by_class(scores, labels, wrong, share=2)


def bars(figure):
    """Of each histogram: edges, heights, colour and name."""
    (axes,) = figure.axes
    found = {}
    for group in axes.containers:
        edges = [bar.get_x() for bar in group]
        edges.append(group[-1].get_x() + group[-1].get_width())
        found[group[0].get_label()] = (
            np.array(edges),
            np.array([bar.get_height() for bar in group]),
            group[0].get_facecolor(),
        )
    return found


def test_distribution_shows_wrong_labels_apart_from_right_ones():
    scores = np.array([1.0, 1.1, 1.2, 100.0, 120.0])
    wrong = np.array([False, False, False, True, True])
    figure = plots.score_distribution(
        SelfInfluence(scores, np.arange(5)), wrong, name="TracIn"
    )
    found = bars(figure)
    assert list(found) == ["right label: 3", "wrong label: 2"]
    for place, (edges, heights, colour) in enumerate(found.values()):
        np.testing.assert_allclose(heights.sum(), 1)
        inside = scores[wrong == bool(place)]
        shown = edges[:-1][heights > 0]
        assert inside.min() / 1.1 <= shown.min() <= shown.max() <= inside.max()
        assert (to_hex(colour) == WRONG) == bool(place)
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "TracIn")


@pytest.mark.parametrize(
    ("scores", "scale"),
    [
        ([0.0, 1.0, 1e-9, 5.0], "log"),
        ([2.0, 2.0, 2.0], "log"),
        ([-1.0, 2.0, 3.0], "linear"),
        ([0.0, 0.0], "linear"),
    ],
)
def test_distribution_draws_every_score_whatever_the_axis(scores, scale):
    figure = plots.score_distribution(scores)
    (heights,) = [heights for _, heights, _ in bars(figure).values()]
    np.testing.assert_allclose(heights.sum(), 1)
    assert figure.axes[0].get_xscale() == scale


@pytest.mark.parametrize(
    ("scores", "wrong", "message"),
    [
        ([], None, r"shape \(0,\)"),
        ([1.0, np.inf], None, "1 of them NaN or infinite"),
        ([[1.0]], None, r"shape \(1, 1\)"),
        ([1.0, 2.0], [True], "`is_mislabeled` should have length 2"),
    ],
)
def test_distribution_refuses_what_is_no_list_of_scores(scores, wrong, message):
    with pytest.raises(ValueError, match=message):
        plots.score_distribution(scores, wrong)
