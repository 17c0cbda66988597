"""Letters that matplotlib's own font lacks: another font, or one hint."""

import io
import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager

from keras_tracin import plots
from keras_tracin.plots import fonts
from keras_tracin.plots.wrapping import shorten, width_of, wrap
from tests.plots.helpers import top_of

TOP = top_of([[0]], [[1]], query_ids=[0])


@pytest.fixture
def hints(monkeypatch):
    """No hint was given before."""
    monkeypatch.setattr(fonts, "_hinted", set())


@pytest.fixture
def cat_font(tmp_path, monkeypatch):
    """A font that is installed and has a single letter, that for a cat."""
    pen = TTGlyphPen(None)
    for move, point in [
        (pen.moveTo, (0, 0)),
        (pen.lineTo, (0, 500)),
        (pen.lineTo, (500, 0)),
    ]:
        move(point)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": pen.glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (600, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "cats.ttf")
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    fontManager.addfont(tmp_path / "cats.ttf")


def drawn(texts, **options):
    """The texts of a table, and the messages of all warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = plots.text_table(TOP, texts[:1], texts, **options)
        figure.savefig(io.BytesIO())
    return figure.texts, [str(warning.message) for warning in caught]


def test_a_font_that_is_installed_is_used(hints, cat_font):
    texts, messages = drawn(["a 猫", "b"])
    assert not messages
    (cat, *_) = (text for text in texts if "猫" in text.get_text())
    assert cat.get_fontfamily()[-1] == "Cats"
    (plain, *_) = (text for text in texts if text.get_text() == "b")
    assert "Cats" not in plain.get_fontfamily()


def test_without_a_font_a_hint_says_once_what_to_install(hints, cat_font):
    # A letter of an unwritten script, and one that the font of cats lacks.
    texts, messages = drawn(["𐀀 猫", "b 𐀀"])
    (message,) = messages
    assert "Linear (𐀀)" in message
    assert "fontlist*.json" in message
    shown = {text.get_text() for text in texts}
    assert {"□ 猫", "b □"} <= shown
    assert drawn(["𐀀 猫", "b"])[1] == []


def test_names_of_classes_on_an_axis_are_drawn_as_well(hints):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = plots.mislabeled_by_class([1, 2], ["a", "𐀀"], [True, False])
        figure.savefig(io.BytesIO())
    assert len(caught) == 1
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["a", "□"]


def test_wide_letters_are_wrapped_without_spaces():
    text = "猫坐在垫子上" * 60
    short = shorten(text, 100)
    assert short == text[:98] + " …"
    lines = wrap(short, width=210, size=10)
    assert "".join(lines).replace(" ", "") == short.replace(" ", "")
    assert {len(line) for line in lines[:-1]} == {20}
    assert all(width_of(line, 10) <= 210 for line in lines)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", [""]),
        ("ab aa", ["ab aa"]),
        ("aaaa ab aa b", ["aaaa", "ab aa", "b"]),
        ("a" * 10, ["a" * 4, "a" * 4, "aa"]),
        ("b " + "a" * 6, ["b", "a" * 4, "aa"]),
    ],
)
def test_lines_break_between_words_and_within_long_ones(text, lines):
    assert wrap(text, width_of("ab aa", 10), 10) == lines


def test_texts_are_cut_at_a_word():
    assert shorten("one two\nthree", 40) == "one two three"
    assert shorten("one two three four", 14) == "one two …"
    assert np.all([len(shorten("a b " * n, 9)) <= 9 for n in range(9)])
