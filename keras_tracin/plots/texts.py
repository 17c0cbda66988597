"""Tables of texts: queries with their proponents and opponents.

Public as `keras_tracin.plots`.

Synopsis:

    top = tracin.top_k((x_test, y_test), k=3)
    plots.text_table(top, test_texts, train_texts, queries=4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.data.kinds import as_text, kind_of, named_arrays
from keras_tracin.plots.figures import DPI, WRONG, add_note, new_page
from keras_tracin.plots.fonts import use_fonts
from keras_tracin.plots.selection import Selection, select
from keras_tracin.plots.shown import Shown
from keras_tracin.plots.wrapping import shorten, wrap
from keras_tracin.results import Attribution, TopK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches.
_WIDTH = 9.0
_SIDE, _SCORE, _LABEL, _TEXT = 0.12, 1.5, 1.63, 3.35  # left edges of columns
_LINE, _ROOM = 0.165, 0.13  # height of a line, and padding of a row
_FOOT = 0.25  # height of the note below the table
_TALL = 24.0  # height to fill by default
_TALLEST = 2**16 // DPI  # a figure that every matplotlib can draw
_SIZE = 8.5  # font size, in points
_POINTS = 72  # in an inch
_GAP = 0.1  # between columns
_MOST_LABEL_LETTERS = 60
_MOST_VALUES = 30  # of an input that is no text
_MOST = (20, 10)  # queries, and examples on each side, unless chosen


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of the table; the row of a query has no score."""

    side: str
    score: str
    label: list[str]
    lines: list[str]
    is_query: bool = False
    is_wrong: bool = False

    @property
    def height(self) -> float:
        return _LINE * max(len(self.lines), len(self.label)) + _ROOM


def text_table(
    top: TopK | Attribution,
    query_texts: Any,
    train_texts: Any,
    *,
    queries: int | Sequence[Any] | None = None,
    k: int | None = None,
    query_labels: Any = None,
    train_labels: Any = None,
    train_ids: Any = None,
    is_mislabeled: Any = None,
    class_names: Sequence[Any] | None = None,
    letters: int = 250,
) -> Figure:
    """Draws a table of queries, each with its proponents and opponents.

    Each query is followed by its proponents (positive scores: training on them
    lowered its loss) and its opponents, the strongest first, with score, label
    and the beginning of the text, as in table 2 of Pruthi et al. (2020).

    Data are those that the method was given, or others with the same ids, such
    as texts in place of their tokens. Several inputs stand one after another,
    each after its name, and so do the values of a row. Texts alone will do as
    well.

    Example:
    ```python
    train, test = (x_train, y_train), (x_test, y_test)
    figure = plots.text_table(
        tracin.top_k(test, k=3), test, train, queries=2, class_names=names
    )
    figure.savefig("texts.png")
    ```

    Args:
        top: result of `top_k` for m queries, or of `influence`.
        query_texts: the queries as `fit` takes them; or texts `[m]` of all
            queries of `top`, or of those in `queries`, in that order.
        train_texts: the training examples as `fit` takes them, or texts `[n]`.
        queries: number of queries to show, from the first; or their ids. By
            default as many as fit 24 inches, up to 20.
        k: number of proponents and of opponents to show; by default those in
            `top`, up to 10. Of an `Attribution`, 5.
        query_labels: labels in the order of `query_texts`, or by id, shown as
            `str`; by default those in the data.
        train_labels: labels in the order of `train_texts`, likewise.
        train_ids: ids `[n]` of `train_texts`, if `with_ids` attached them and
            these are arrays; by default ids are positions.
        is_mislabeled: booleans in the order of `train_texts`, or by id; wrong
            labels are drawn in red.
        class_names: names of the classes 0, 1, …
        letters: number of characters to show of each text.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `top` is another result.
        ValueError: if `top` has no queries, if lengths do not match, if `top`
            names an id that the data does not have, if the inputs are images,
            or if the table is too tall to be drawn.
    """
    figure = new_page()
    selection = select(top, queries, k, _MOST)
    asked = selection.queries(
        query_texts, "query_texts", query_labels, class_names
    )
    trained = selection.examples(
        train_texts,
        "train_texts",
        train_labels,
        class_names,
        train_ids,
        is_mislabeled,
    )
    rows: list[_Row] = []
    for query in range(len(selection.rows)):
        block = list(_block(selection, query, asked, trained, letters))
        height = sum(row.height for row in [*rows, *block])
        if queries is None and rows and height > _TALL:
            selection = selection.first(query)
            break
        rows += block
    height = sum(row.height for row in rows)
    if height > _TALLEST:
        raise ValueError(
            f"The table should be at most {_TALLEST} inches tall. Received: "
            f"{len(selection.rows)} queries that need {height:.0f} inches. "
            "Pass fewer as `queries=`, or a smaller `k=` or `letters=`."
        )
    _draw(figure, rows, selection.note)
    use_fonts(figure)
    return figure


def _block(
    selection: Selection,
    query: int,
    asked: Shown,
    trained: Shown,
    letters: int,
) -> Iterator[_Row]:
    """The row of a query, and those of its proponents and opponents."""
    place = asked.at[query]
    text = shorten(_text(asked, place), letters)
    width = (_WIDTH - _TEXT - _GAP) * _POINTS
    lines = wrap(text, width, _SIZE, is_bold=True)
    label = _wrap_label(asked, place, is_bold=True)
    yield _Row("Query", "", label, lines, is_query=True)
    sides = selection.top.proponents, selection.top.opponents
    scores = np.hstack([side.scores[query] for side in sides])
    for i, (score, place) in enumerate(
        zip(scores, trained.at[query], strict=True)
    ):
        yield _Row(
            "Proponent" if i < len(scores) // 2 else "Opponent",
            f"{score:+.3g}",
            _wrap_label(trained, place),
            wrap(shorten(_text(trained, place), letters), width, _SIZE),
            is_wrong=trained.is_wrong is not None
            and bool(trained.is_wrong[place]),
        )


def _wrap_label(shown: Shown, place: int, is_bold: bool = False) -> list[str]:
    if shown.labels is None:
        return [""]
    label = shorten(shown.labels[place], _MOST_LABEL_LETTERS)
    width = (_TEXT - _LABEL - _GAP) * _POINTS
    return wrap(label, width, _SIZE, is_bold)


def _text(shown: Shown, place: int) -> str:
    """An example as text: its texts and values, after their names."""
    inputs = [
        (name, array)
        for name, array in named_arrays(shown.batch.x)
        if kind_of(array) != "image"
    ]
    if not inputs:
        raise ValueError(
            f"`{shown.name}` should hold texts or rows of values. Received "
            "images. Draw these by `plots.proponents_and_opponents`."
        )
    parts = []
    for name, array in inputs:
        values = array[place : place + 1].reshape(-1).tolist()
        text = ", ".join(as_text(value) for value in values[:_MOST_VALUES])
        text += ", …" * (len(values) > _MOST_VALUES)
        parts.append(f"{name}: {text}" if len(inputs) > 1 else text)
    return " · ".join(parts)


def _draw(figure: Figure, rows: list[_Row], note: str) -> None:
    from matplotlib.patches import Rectangle

    total = sum(row.height for row in rows) + (_FOOT if note else 0)
    figure.set_size_inches(_WIDTH, total)
    top = total
    for row in rows:
        low = top - row.height
        figure.add_artist(
            Rectangle(
                (0, low / total),
                1,
                row.height / total,
                facecolor="#e4e9f0" if row.is_query else "white",
                edgecolor="#c8c8c8",
                linewidth=0.5,
                zorder=0,
            )
        )
        columns = (
            (_SIDE, "left", [row.side], "black"),
            (_SCORE, "right", [row.score], "black"),
            (_LABEL, "left", row.label, WRONG if row.is_wrong else "black"),
            (_TEXT, "left", row.lines, "black"),
        )
        for x, align, lines, colour in columns:
            # Line by line, since the height of a line depends on its letters.
            for place, line in enumerate(lines):
                baseline = top - _ROOM / 2 - (place + 0.75) * _LINE
                figure.text(
                    x / _WIDTH,
                    baseline / total,
                    line,
                    parse_math=False,
                    color=colour,
                    ha=align,
                    va="baseline",
                    fontsize=_SIZE,
                    fontweight="bold" if row.is_query else "normal",
                )
        top = low
    add_note(figure, note, "left")
