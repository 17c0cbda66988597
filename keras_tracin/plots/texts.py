"""Tables of texts: queries with their proponents and opponents.

Public as `keras_tracin.plots`.

Synopsis:

    top = tracin.top_k((x_test, y_test), k=3)
    plots.text_table(top, test_texts, train_texts, train_labels=labels)
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_tracin.plots.columns import column, find_positions
from keras_tracin.plots.figures import WRONG, new_figure
from keras_tracin.results import TopK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches.
_WIDTH = 9.0
_SIDE, _SCORE, _LABEL, _TEXT = 0.12, 1.62, 1.75, 3.35  # left edges of columns
_LINE, _ROOM = 0.165, 0.13  # height of a line, and padding of a row
_SIZE = 8.5  # font size, in points
_IN_A_LINE = 88  # letters of text
_IN_A_BOLD_LINE = 76


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row of the table; the row of a query has no score."""

    side: str
    score: str
    label: str
    lines: list[str]
    is_query: bool = False
    is_wrong: bool = False

    @property
    def height(self) -> float:
        return _LINE * len(self.lines) + _ROOM


def text_table(
    top: TopK,
    query_texts: Sequence[str],
    train_texts: Sequence[str],
    *,
    query_labels: Sequence[Any] | None = None,
    train_labels: Sequence[Any] | None = None,
    train_ids: Any = None,
    is_mislabeled: Any = None,
    letters: int = 250,
) -> Figure:
    """Draws a table of queries, each with its proponents and opponents.

    Each query is followed by its proponents (positive scores: training on them
    lowered its loss) and its opponents, the strongest first, with score, label
    and the beginning of the text, as in table 2 of Pruthi et al. (2020).

    Example:
    ```python
    top = tracin.top_k((x_test[:2], y_test[:2]), k=3)
    figure = plots.text_table(
        top, test_texts[:2], train_texts, train_labels=names[y_train]
    )
    figure.savefig("texts.png")
    ```

    Args:
        top: result of `top_k` for m queries.
        query_texts: texts `[m]` in the order of `top`.
        train_texts: texts `[n]`.
        query_labels: labels `[m]`, shown as `str`.
        train_labels: labels `[n]`, likewise.
        train_ids: ids `[n]` of `train_texts`, if `with_ids` attached them; by
            default ids are positions.
        is_mislabeled: booleans `[n]`; wrong labels are drawn in red.
        letters: number of characters to show of each text.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if `top` has no queries, if lengths do not match,
            or if `top` names an id that `train_texts` does not have.
    """
    figure = new_figure()
    m, n = len(top), len(train_texts)
    if not m:
        raise ValueError("`top` should hold at least one query. Received none.")
    column("query_texts", query_texts, m)
    names = column("query_labels", query_labels, m)
    labels = column("train_labels", train_labels, n)
    all_ids = column("train_ids", train_ids, n)
    wrong = column("is_mislabeled", is_mislabeled, n)

    rows: list[_Row] = []
    for query in range(m):
        label = "" if names is None else str(names[query])
        lines = _wrap(query_texts[query], letters, _IN_A_BOLD_LINE)
        rows.append(_Row("Query", "", label, lines, is_query=True))
        for side in ("proponents", "opponents"):
            ranking = getattr(top, side)
            ids = ranking.ids[query : query + 1]
            at = find_positions(ids, all_ids, n, "train_texts")[0]
            for place, score in zip(at, ranking.scores[query], strict=True):
                rows.append(
                    _Row(
                        side[:-1].capitalize(),
                        f"{score:+.3g}",
                        "" if labels is None else str(labels[place]),
                        _wrap(train_texts[place], letters),
                        is_wrong=wrong is not None and bool(wrong[place]),
                    )
                )
    _draw(figure, rows)
    return figure


def _wrap(text: str, letters: int, in_a_line: int = _IN_A_LINE) -> list[str]:
    """The beginning of a text, in lines."""
    opening = textwrap.shorten(
        " ".join(str(text).split()), letters, placeholder=" …"
    )
    return textwrap.wrap(opening, in_a_line) or [""]


def _draw(figure: Figure, rows: list[_Row]) -> None:
    from matplotlib.patches import Rectangle

    total = sum(row.height for row in rows)
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
            (_SIDE, "left", row.side, "black"),
            (_SCORE, "right", row.score, "black"),
            (_LABEL, "left", row.label, WRONG if row.is_wrong else "black"),
            (_TEXT, "left", "\n".join(row.lines), "black"),
        )
        for x, align, text, colour in columns:
            # Line by line, since the height of a line depends on its letters.
            for place, line in enumerate(text.split("\n")):
                baseline = top - _ROOM / 2 - (place + 0.75) * _LINE
                figure.text(
                    x / _WIDTH,
                    baseline / total,
                    # A dollar sign would begin a formula.
                    line.replace("$", r"\$"),
                    color=colour,
                    ha=align,
                    va="baseline",
                    fontsize=_SIZE,
                    fontweight="bold" if row.is_query else "normal",
                )
        top = low
