import sys

import numpy as np
import pytest
from matplotlib import _pylab_helpers

from keras_tracin import plots
from keras_tracin.plots.figures import WRONG
from tests.error_rows import row
from tests.plots.helpers import top_of

IMAGES = np.linspace(0, 1, 5 * 4 * 4).reshape(5, 4, 4)
QUERIES = np.linspace(0, 2, 2 * 4 * 4).reshape(2, 4, 4)


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


def grid(figure, m, k):
    """What is drawn, as rows of query, proponents and opponents."""
    cells, rows = drawn(figure), [[] for _ in range(m)]
    for columns in (1, k, k):
        group, cells = cells[: m * columns], cells[m * columns :]
        for at in range(m):
            rows[at] += group[at * columns : (at + 1) * columns]
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
    assert [line[0][1] for line in grid(figure, 2, 1)] == ["x", "y"]


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
    shown = [image for line in grid(figure, 2, 1) for image, _, _ in line[1:]]
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
    ("white", "dtype"), [(255, "uint8"), (255, "float32"), (1, "float32")]
)
def test_colours_are_as_bright_from_0_to_255_as_from_0_to_1(white, dtype):
    colours = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3))
    figure = plots.proponents_and_opponents(
        TOP, QUERIES, (colours * (white / 255)).astype(dtype)
    )
    shown = [image for line in grid(figure, 2, 2) for image, _, _ in line[1:]]
    np.testing.assert_allclose(
        shown, colours[[4, 1, 3, 0, 0, 2, 1, 4]] / 255, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_images": IMAGES}, "`query_images` should have length 2"),
        ({"query_labels": ["a"]}, "`query_labels` should have length 2"),
        ({"train_labels": [0] * 6}, "`train_labels` should have length 5"),
        ({"train_ids": [0] * 4}, "`train_ids` should have length 5"),
        ({"is_mislabeled": [True]}, "`is_mislabeled` should have length 5"),
        ({"train_images": IMAGES[:3]}, row("figure-id", "the id 3")),
        ({"train_ids": list("abcde")}, row("figure-id", "the id 0")),
        ({"train_images": np.zeros((5, 16))}, r"Received: shape \(5, 16\)"),
        ({"train_images": np.zeros((5, 4, 4, 2))}, "1, 3 or 4 channels"),
        ({"train_images": np.full((5, 4, 4, 3), 1.5)}, "floats from 0 to 1"),
        (
            {"train_images": np.full((5, 4, 4, 3), -1)},
            "from 0 to 255, or floats",
        ),
        ({"top": top_of(np.zeros((0, 1)), np.zeros((0, 1)), ())}, "one query"),
    ],
)
def test_grid_refuses_what_does_not_fit(changes, message):
    arguments = {"top": TOP, "query_images": QUERIES, "train_images": IMAGES}
    with pytest.raises(ValueError, match=message):
        plots.proponents_and_opponents(**arguments | changes)


def test_figures_are_saved_without_pyplot(tmp_path):
    plots.proponents_and_opponents(TOP, QUERIES, IMAGES).savefig(
        tmp_path / "grid.png"
    )
    plots.recall_curve({"a": [1, 2]}, [True, False]).savefig(
        tmp_path / "recall.png"
    )
    plots.score_map([1, 2], [3, 4], [1.0, -1.0]).savefig(tmp_path / "map.png")
    plots.text_table(TOP, "ab", "cdefg").savefig(tmp_path / "texts.png")
    for name in ("grid.png", "recall.png", "map.png", "texts.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert not _pylab_helpers.Gcf.get_all_fig_managers()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"keras_tracin\[plots\]"):
        plots.recall_curve({"a": [1, 2]}, [True, False])
