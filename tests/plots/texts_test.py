import io

import numpy as np
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.backends.backend_agg import FigureCanvasAgg

from keras_tracin import plots
from keras_tracin.plots.figures import WRONG
from tests.error_rows import row
from tests.plots.helpers import rows_of, top_of

QUERIES = ["a cat", "a dog"]
TEXTS = ["zero", "one", "two", "three", "four"]
TOP = top_of([[4, 1], [0, 2]], [[3, 0], [1, 4]])


def cells(figure):
    """What each row says, in four columns, lines of text joined by a bar."""
    rows = []
    for text in figure.texts:
        if text.get_text() in ("Query", "Proponent", "Opponent"):
            rows.append([])
        rows[-1].append(text.get_text())
    return [[*row[:3], "|".join(row[3:])] for row in rows]


def test_each_query_is_followed_by_its_proponents_and_its_opponents():
    figure = plots.text_table(
        TOP, QUERIES, TEXTS, query_labels=["pet", 1], train_labels=[*"abcde"]
    )
    assert cells(figure) == [
        ["Query", "", "pet", "a cat"],
        ["Proponent", "+0.5", "e", "four"],
        ["Proponent", "+0.25", "b", "one"],
        ["Opponent", "-0.5", "d", "three"],
        ["Opponent", "-0.25", "a", "zero"],
        ["Query", "", "1", "a dog"],
        ["Proponent", "+0.5", "a", "zero"],
        ["Proponent", "+0.25", "c", "two"],
        ["Opponent", "-0.5", "b", "one"],
        ["Opponent", "-0.25", "e", "four"],
    ]


def test_rows_stand_below_one_another_within_the_figure():
    figure = plots.text_table(TOP, QUERIES, TEXTS)
    heights = [
        text.get_position()[1]
        for text in figure.texts
        if text.get_position()[0] < 0.1
    ]
    assert len(heights) == 10
    assert heights[0] < 1
    assert (np.diff(heights) < 0).all()
    assert heights[-1] > 0


def test_long_texts_are_cut_and_wrapped_and_dollars_are_no_formula():
    texts = ["word " * 100, "costs $5 or $6", *TEXTS[2:]]
    figure = plots.text_table(
        top_of([[0], [1]], [[1], [0]]), QUERIES, texts, letters=120
    )
    shown = [row[3] for row in cells(figure)]
    lines = shown[1].split("|")
    assert len(lines) == 2
    assert " ".join(lines) == "word " * 23 + "…"
    assert shown[2] == "costs $5 or $6"
    figure.savefig(io.BytesIO())  # a formula of "5 or " would be refused


def test_wrong_labels_and_no_others_are_red():
    figure = plots.text_table(
        TOP,
        QUERIES,
        TEXTS,
        train_labels=[*"abcde"],
        is_mislabeled=np.arange(5) == 4,
    )
    red = [t.get_text() for t in figure.texts if t.get_color() == WRONG]
    assert red == ["e", "e"]


def test_attached_ids_find_their_texts():
    ids = np.array(["e", "b", "d", "a", "c"])
    top = top_of([["a"], ["b"]], [["c"], ["d"]])
    figure = plots.text_table(top, QUERIES, TEXTS, train_ids=ids)
    shown = [row[3] for row in cells(figure) if row[0] != "Query"]
    assert shown == ["three", "four", "one", "two"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_texts": ["a"]}, "`query_texts` should have length 2"),
        ({"query_labels": ["a"]}, "`query_labels` should have length 2"),
        ({"train_labels": ["a"]}, "`train_labels` should have length 5"),
        ({"train_ids": ["a"]}, "`train_ids` should have length 5"),
        ({"is_mislabeled": [True]}, "`is_mislabeled` should have length 5"),
        ({"train_texts": TEXTS[:3]}, row("figure-id", "the id 3")),
        ({"top": top_of(np.zeros((0, 1)), np.zeros((0, 1)), ())}, "one query"),
    ],
)
def test_table_refuses_what_does_not_fit(changes, message):
    arguments = {"top": TOP, "query_texts": QUERIES, "train_texts": TEXTS}
    with pytest.raises(ValueError, match=message):
        plots.text_table(**arguments | changes)


def test_lines_stay_within_their_column_whatever_the_letters():
    texts = ["W" * 300, "iiii " * 60, "i" * 300, "MMMM " * 60, "a"]
    figure = plots.text_table(
        TOP, QUERIES, texts, train_labels=["MeanOfTransportation by water"] * 5
    )
    renderer = FigureCanvasAgg(figure).get_renderer()
    width = figure.bbox.width
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        left = text.get_position()[0]
        assert box.x1 <= (0.372 if 0.17 < left < 0.19 else 1) * width
    assert "…" in "".join(t.get_text() for t in figure.texts)


def test_a_tall_table_shows_the_first_queries_and_says_so():
    texts = ["word " * 100] * 10
    top = rows_of(3, m=32)
    figure = plots.text_table(top, texts[:1] * 32, texts)
    assert 10 < figure.get_figheight() < 26
    count = sum(text.get_text() == "Query" for text in figure.texts)
    note = f"{count} of 32 queries; choose others by queries="
    assert figure.texts[-1].get_text() == note
    whole = plots.text_table(top, texts[:1] * 32, texts, queries=32, letters=20)
    assert sum(text.get_text() == "Query" for text in whole.texts) == 32
    with pytest.raises(ValueError, match=row("figure-tall")):
        plots.text_table(
            rows_of(10, m=300), texts[:1] * 300, texts, queries=300, letters=450
        )


def test_a_notebook_shows_the_table():
    figure = plots.text_table(TOP, QUERIES, TEXTS)
    assert print_figure(figure).startswith(b"\x89PNG")
