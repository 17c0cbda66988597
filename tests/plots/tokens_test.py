"""Tables of texts whose tokens are coloured, as they are drawn."""

import io

import matplotlib
import numpy as np
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

import keras_tracin as kt
from keras_tracin import plots
from keras_tracin.plots.reading_order import in_order
from tests.error_rows import row

TEXTS = ["the cat sat", "a dog", "on the mat", "so it goes"]
WORDS = [text.split() for text in TEXTS]
VOCABULARY = ["<pad>", *sorted({word for words in WORDS for word in words})]
IDS = np.zeros((4, 4), int)
for _row, _words in zip(IDS, WORDS, strict=True):
    _row[: len(_words)] = [VOCABULARY.index(word) for word in _words]
QUERIES = IDS[[0, 2]]
SCORES = np.zeros((2, 4, 4))
SCORES[0, 0] = [1, -2, 0, 0]
SCORES[0, 1] = [0.5, 0.01, 0, 0]
SCORES[0, 2] = [-1, -1, 4, 0]
SCORES[1] = SCORES[0, ::-1]
REST = np.zeros((2, 4))
REST[0, 1] = 0.25
RESULT = kt.TokenInfluence(SCORES, REST, np.arange(2), np.arange(4))


def table(result=RESULT, asked=QUERIES, train=IDS, **options):
    options = {"tokenizer": VOCABULARY} | options
    return plots.token_table(result, asked, train, **options)


def says(figure):
    return [text.get_text() for text in figure.texts]


def marks(figure):
    """How strong the colour behind a word is, and its line, by the word."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    size = figure.bbox.width, figure.bbox.height
    words = {}
    for text in figure.texts:
        box = text.get_window_extent(renderer)
        if text.get_text():
            centre = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            words.setdefault(text.get_text(), []).append(
                tuple(np.divide(centre, size))
            )
    lines = [a for a in figure.artists if isinstance(a, Line2D)]
    found = {}
    for band in (a for a in figure.artists if isinstance(a, Rectangle)):
        (x, y), width, height = (
            band.get_xy(),
            band.get_width(),
            band.get_height(),
        )
        inside = [
            word
            for word, places in words.items()
            for place in places
            if x <= place[0] <= x + width and y <= place[1] <= y + height
        ]
        line = next(
            a
            for a in lines
            if x - 1e-9 <= a.get_xdata()[0] <= x + width
            and y <= a.get_ydata()[0] <= y + height
        )
        (word,) = inside
        found[word] = (
            round(band.get_alpha(), 3),
            line.get_linestyle() == "-",
            line.get_linewidth(),
        )
    return found


def test_tokens_are_marked_by_sign_and_size_without_colour_too():
    found = marks(table(queries=1, k=3))
    assert {"mat", "cat", "on", "a"} < found.keys()
    assert [found[word][1] for word in ("mat", "cat", "on", "a")] == [
        True,
        False,
        False,
        True,
    ]
    assert "dog" not in found  # its share is too small
    strengths = [found[word][0] for word in ("mat", "cat", "on", "a")]
    assert strengths == sorted(strengths, reverse=True)
    widths = [found[word][2] for word in ("mat", "cat", "on", "a")]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 4


def test_examples_are_those_of_the_largest_scores_in_their_order():
    headings = [t for t in says(table(queries=[0])) if "id" in t.split()]
    assert [heading.split("   ")[:2] for heading in headings] == [
        ["Proponent +2", "id 2"],
        ["Proponent +0.76", "id 1"],
        ["Proponent +0", "id 3"],
        ["Opponent -1", "id 0"],
    ]
    assert headings[1].endswith("of no token: +0.25")
    shown = [t for t in says(table(queries=1, k=2)) if "id" in t.split()]
    assert [heading.split("   ")[1] for heading in shown] == ["id 2", "id 0"]


def test_what_is_left_out_unasked_is_said():
    assert "more by" not in " ".join(says(table()))
    count = 12
    result = kt.TokenInfluence(
        np.ones((count, 6, 1)),
        np.zeros((count, 6)),
        np.arange(count),
        np.arange(6),
    )
    words = np.array([["a"]] * 6)
    note = "10 of 12 queries; choose others by queries="
    figure = plots.token_table(result, ["?"] * count, words)
    assert f"{note}, 5 of 6 examples; more by k=" in says(figure)
    figure = plots.token_table(result, ["?"] * count, words, k=2)
    assert note in says(figure)


def test_padding_is_left_out_and_long_texts_are_cut():
    assert "<pad>" not in " ".join(says(table()))
    cut = says(table(queries=1, k=1, most_tokens=2))
    assert "mat" not in cut
    assert "…" in cut


def test_what_a_query_asks_about_is_bold():
    x, y = QUERIES[:, :3], QUERIES[:, 1:]
    weights = np.array([[0, 1, 0], [0, 1, 0]], "float32")
    figure = table(asked=(x, y, weights))
    bold = [t.get_text() for t in figure.texts if t.get_fontweight() == "bold"]
    assert bold == ["sat", "mat"]


def test_ids_find_their_texts_and_queries_may_be_texts():
    ids = np.array([40, 10, 30, 20])
    result = kt.TokenInfluence(SCORES, REST, np.arange(2), ids)
    order = [1, 3, 2, 0]
    figure = table(
        result, ["What sat?", "How?"], IDS[order], train_ids=ids[order], k=1
    )
    shown = says(figure)
    assert {"sat?", "How?", "Proponent +2   id 30"} < set(shown)
    assert " ".join(shown).startswith("on the mat What sat?")
    data = kt.with_ids((IDS, np.zeros(4)), ids).batch(2)
    assert says(table(result, train=data, k=1)) == says(
        table(result, train=IDS, train_ids=ids, k=1)
    )


def words_by_place(figure, left):
    """What stands right of a place, from the left, line by line."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [
        (t.get_window_extent(renderer), t.get_text()) for t in figure.texts
    ]
    found = [
        (-round(box.y0), round(box.x0), text)
        for box, text in boxes
        if box.x0 > left * figure.bbox.width and text
    ]
    return [text for _, _, text in sorted(found)]


def test_what_is_read_leftwards_stands_in_that_order_at_the_right():
    tokens = np.array([["א", " ב", " ג", " 20", "24", " in", " Rome"]])
    result = kt.TokenInfluence(
        np.ones((1, 1, 7)), np.zeros((1, 1)), np.arange(1), np.arange(1)
    )
    figure = plots.token_table(result, ["?"], tokens)
    words = [w for w in words_by_place(figure, 0.3) if "Prop" not in w]
    assert words == ["in", "Rome", "20", "24", "ג", "ב", "א"]
    figure.savefig(io.BytesIO())


def test_texts_without_spaces_are_broken_within_the_figure(recwarn):
    tokens = np.array([["東京都" * 60, "x" * 300, "\n", "\x00$5", "y"]])
    result = kt.TokenInfluence(
        np.ones((1, 1, 5)), np.zeros((1, 1)), np.arange(1), np.arange(1)
    )
    figure = plots.token_table(result, ["?"], tokens)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in figure.texts:
        if text.get_text() not in ("x" * 300, ""):
            box = text.get_window_extent(renderer)
            assert box.x1 <= figure.bbox.width
    assert "↵" in says(figure)
    assert "\ufffd$5" in says(figure)
    figure.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 5}, row("token-k", "k", "5")),
        ({"k": True}, row("token-k")),
        ({"train": IDS[:, :3]}, row("token-texts", "of 4 tokens")),
        ({"train": TEXTS}, row("token-texts", "`train_tokens`")),
        ({"train": IDS[:2]}, row("figure-id", "the id 2")),
        ({"asked": IDS[:1]}, row("figure-queries")),
        ({"tokenizer": VOCABULARY[:3]}, row("tokenizer-id")),
    ],
)
def test_table_refuses_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        table(**changes)


def test_table_is_of_shares_of_tokens():
    with pytest.raises(TypeError, match=row("token-result", "Attribution")):
        table(RESULT.attribution)


def test_a_table_that_is_too_tall_is_refused():
    lines = np.array([["\n"] * 2500])
    result = kt.TokenInfluence(
        np.ones((1, 1, 2500)), np.zeros((1, 1)), np.arange(1), np.arange(1)
    )
    with pytest.raises(ValueError, match=row("figure-tall")):
        plots.token_table(result, ["?"], lines, most_tokens=2500)


def test_letters_are_reversed_for_a_matplotlib_that_does_not_know_order(
    monkeypatch,
):
    monkeypatch.setattr(matplotlib, "__version__", "3.10.8")
    assert in_order("שׁלום") == "םולשׁ"  # a mark stays with its letter
    assert in_order("abc 12") == "abc 12"
    monkeypatch.setattr(matplotlib, "__version__", "3.11.0rc1")
    assert in_order("שלום") == "שלום"


def test_a_notebook_shows_the_table():
    assert print_figure(table()).startswith(b"\x89PNG")


def test_each_entry_of_the_legend_is_one_piece():
    spaced = [text.replace("\xa0", " ") for text in says(table())]
    assert {"raises the score", "lowers it"} <= set(spaced)
