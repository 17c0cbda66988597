import sys

import numpy as np
import pytest
from matplotlib import _pylab_helpers

from keras_tracin import plots
from keras_tracin._figures import WRONG
from keras_tracin.attribution import Ranking, TopK

IMAGES = np.linspace(0, 1, 5 * 4 * 4).reshape(5, 4, 4)
QUERIES = np.linspace(0, 2, 2 * 4 * 4).reshape(2, 4, 4)


def top_of(proponents, opponents, query_ids=(0, 1)):
    """A `TopK` with scores 0.5, 0.25, … and their negatives."""
    proponents, opponents = np.array(proponents), np.array(opponents)
    scores = np.broadcast_to(
        0.5 ** np.arange(1, proponents.shape[1] + 1), proponents.shape
    )
    return TopK(
        Ranking(proponents, scores),
        Ranking(opponents, -scores),
        np.array(query_ids),
    )


TOP = top_of([[4, 1], [0, 2]], [[3, 0], [1, 4]])


def drawn(figure):
    """`[(image, caption, caption's colour)]`, column by column."""
    return [
        (axes.images[0].get_array(), label.get_text(), label.get_color())
        for axes in figure.axes
        for label in [axes.xaxis.label]
    ]


def texts(figure):
    return [
        text.get_text()
        for part in (figure, *figure.subfigs)
        for text in part.texts
    ]


def curves(figure):
    (axes,) = figure.axes
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def grid(figure, m, k):
    """What is drawn, as rows of query, proponents and opponents."""
    cells, rows = drawn(figure), [[] for _ in range(m)]
    for columns in (1, k, k):
        group, cells = cells[: m * columns], cells[m * columns :]
        for row in range(m):
            rows[row] += group[row * columns : (row + 1) * columns]
    return rows


def test_each_query_is_followed_by_its_proponents_and_its_opponents():
    figure = plots.proponents_and_opponents(TOP, QUERIES, IMAGES)

    rows = grid(figure, m=2, k=2)
    expected = [
        [QUERIES[0], *IMAGES[[4, 1, 3, 0]]],
        [QUERIES[1], *IMAGES[[0, 2, 1, 4]]],
    ]
    np.testing.assert_array_equal(
        [[image for image, _, _ in row] for row in rows], expected
    )
    titles = texts(figure)
    assert [title.split("\n")[0] for title in titles] == [
        "Query",
        "Proponents",
        "Opponents",
    ]


def test_captions_give_labels_and_signed_scores():
    figure = plots.proponents_and_opponents(
        TOP,
        QUERIES,
        IMAGES,
        query_labels=["cat", "dog"],
        train_labels=["a", "b", "c", "d", "e"],
    )
    captions = [caption for _, caption, _ in grid(figure, 2, 2)[0]]
    assert captions == ["cat", "e\n+0.5", "b\n+0.25", "d\n-0.5", "a\n-0.25"]


def test_queries_without_labels_are_captioned_with_their_ids():
    top = top_of([[0], [1]], [[1], [0]], query_ids=["x", "y"])
    figure = plots.proponents_and_opponents(top, QUERIES, IMAGES)
    assert [row[0][1] for row in grid(figure, 2, 1)] == ["x", "y"]


def test_wrong_labels_and_no_others_are_red():
    figure = plots.proponents_and_opponents(
        TOP, QUERIES, IMAGES, is_mislabeled=np.arange(5) == 4
    )
    red = [
        np.array_equal(image, IMAGES[4])
        for image, _, colour in drawn(figure)
        if colour == WRONG
    ]
    assert red == [True, True]
    assert "red: wrong label" in texts(figure)


def test_all_grey_images_share_one_scale():
    figure = plots.proponents_and_opponents(TOP, QUERIES, IMAGES)
    limits = {axes.images[0].get_clim() for axes in figure.axes}
    assert limits == {(0.0, 2.0)}


def test_attached_ids_find_their_images():
    ids = np.array(["e", "b", "d", "a", "c"])
    top = top_of([["a"], ["b"]], [["c"], ["d"]])
    figure = plots.proponents_and_opponents(top, QUERIES, IMAGES, train_ids=ids)
    shown = [image for row in grid(figure, 2, 1) for image, _, _ in row[1:]]
    np.testing.assert_array_equal(shown, IMAGES[[3, 4, 1, 2]])


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_images_may_have_channels(channels):
    shape = (4, 4) if channels == 1 else (4, 4, channels)
    figure = plots.proponents_and_opponents(
        TOP,
        np.zeros((2, 4, 4, channels), "uint8"),
        np.full((5, 4, 4, channels), 255, "uint8"),
    )
    assert {image.shape for image, _, _ in drawn(figure)} == {shape}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_images": IMAGES}, "`query_images` should have length 2"),
        ({"query_labels": ["a"]}, "`query_labels` should have length 2"),
        ({"train_labels": [0] * 6}, "`train_labels` should have length 5"),
        ({"train_ids": [0] * 4}, "`train_ids` should have length 5"),
        ({"is_mislabeled": [True]}, "`is_mislabeled` should have length 5"),
        ({"train_images": IMAGES[:3]}, "names the training id 4"),
        ({"train_ids": list("abcde")}, "names the training id"),
        ({"train_images": np.zeros((5, 16))}, r"Received: shape \(5, 16\)"),
        ({"train_images": np.zeros((5, 4, 4, 2))}, "1, 3 or 4 channels"),
        ({"train_images": np.full((5, 4, 4, 3), 1.5)}, "floats from 0 to 1"),
        ({"train_images": np.full((5, 4, 4, 3), -1)}, "integers from 0 to 255"),
        ({"top": top_of(np.zeros((0, 1)), np.zeros((0, 1)), ())}, "one query"),
    ],
)
def test_grid_refuses_what_does_not_fit(changes, message):
    arguments = {"top": TOP, "query_images": QUERIES, "train_images": IMAGES}
    with pytest.raises(ValueError, match=message):
        plots.proponents_and_opponents(**arguments | changes)


def test_recall_counts_wrong_labels_from_the_highest_score_down():
    wrong = [False, True, False, True]
    figure = plots.recall_curve({"mine": [3.0, 4.0, 1.0, 2.0]}, wrong)
    expected = [(0, 0), (0.25, 0.5), (0.5, 0.5), (0.75, 1), (1, 1)]
    np.testing.assert_allclose(curves(figure)["mine"], expected)


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


def test_figures_are_saved_without_pyplot(tmp_path):
    plots.proponents_and_opponents(TOP, QUERIES, IMAGES).savefig(
        tmp_path / "grid.png"
    )
    plots.recall_curve({"a": [1, 2]}, [True, False]).savefig(
        tmp_path / "recall.png"
    )
    for name in ("grid.png", "recall.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"keras_tracin\[plots\]"):
        plots.recall_curve({"a": [1, 2]}, [True, False])
