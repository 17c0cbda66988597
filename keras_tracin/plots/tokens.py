"""Texts whose tokens are coloured by their shares of scores.

Public as `keras_tracin.plots`.

Synopsis:

    tokens = tracin.token_influence(test, train=top.proponents.ids[0])
    plots.token_table(tokens, test, train, tokenizer=tokenizer)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.data.subwords import Vocabulary
from keras_tracin.data.token_texts import TokenTexts
from keras_tracin.plots.figures import (
    DPI,
    OPPONENT,
    PROPONENT,
    add_note,
    new_page,
)
from keras_tracin.plots.fonts import use_fonts
from keras_tracin.plots.selection import Selection, select
from keras_tracin.plots.token_lines import (
    Draft,
    Mark,
    Writing,
    begin,
    line_up,
)
from keras_tracin.results import Ranking, TokenInfluence, TopK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In inches.
_WIDTH = 9.6
_QUERY, _TEXT, _RIGHT = 0.12, 3.35, 9.48  # edges of the two columns
_GAP = 0.25  # between them
_LINE, _HEAD, _ROOM = 0.21, 0.2, 0.14  # of text, of its heading, of padding
_FOOT = 0.3
_TALLEST = 2**16 // DPI
_SIZE, _SMALL = 9.0, 8.0  # font sizes, in points
_POINTS = 72  # in an inch
_MOST = (10, 5)  # queries and examples of each, unless chosen
_LEAST = 0.04  # of the largest share: what gets a mark
_PALEST, _STRONGEST = 0.08, 0.55  # how much of the colour is mixed in


@dataclasses.dataclass(frozen=True)
class _Row:
    """A query and its examples, as pieces or as lines to draw."""

    query: list[Any]
    examples: list[tuple[str, list[Any]]]

    def lined_up(self, figure: Figure) -> _Row:
        """The row with lines in place of pieces."""
        beside = (_TEXT - _GAP - _QUERY) * _POINTS
        width = (_RIGHT - _TEXT) * _POINTS
        examples = [
            (heading, line_up(figure, drafts, width))
            for heading, drafts in self.examples
        ]
        return _Row(line_up(figure, self.query, beside), examples)

    @property
    def height(self) -> float:
        """The height of its lines, in inches."""
        heads = len(self.examples) * (_HEAD + _ROOM / 2)
        lines = sum(len(lines) for _, lines in self.examples)
        beside = _HEAD + len(self.query) * _LINE
        return max(beside, heads + lines * _LINE) + _ROOM


def token_table(
    tokens: TokenInfluence,
    query_tokens: Any,
    train_tokens: Any,
    *,
    tokenizer: Any = None,
    subwords: str = "auto",
    queries: int | Sequence[Any] | None = None,
    k: int | None = None,
    train_ids: Any = None,
    most_tokens: int = 400,
) -> Figure:
    """Draws queries beside training examples, with the tokens coloured.

    A token is the bluer, with the thicker solid line below, the larger its
    share of a positive score; redder, with a dashed line, where its share is
    negative. The largest share of a query's examples has the full colour. Of
    the query, the words that it asks about are bold. Padding is left out.

    Example:
    ```python
    top = tracin.top_k(test, k=3)
    tokens = tracin.token_influence(test, train=top.proponents.ids[0])
    plots.token_table(tokens, test, train, tokenizer=vocabulary, queries=1)
    ```

    Args:
        tokens: result of `token_influence`.
        query_tokens: the queries as they were scored, with ids of tokens once
            they are preprocessed; or their texts.
        train_tokens: the training examples likewise, `[n, tokens]`, of ids or
            of tokens as strings.
        tokenizer: reads ids: one of KerasHub, a function of an id, a list of
            tokens, or a dict. Not needed where tokens are strings.
        subwords: how tokens make words: "sentencepiece", "bytes" (GPT-2),
            "wordpiece", "words", or "text" for tokens with their own spaces.
            By default their marks tell: ▁, Ġ or ##.
        queries: number of queries to show, from the first, or their ids.
        k: number of examples to show of each query, those of the largest
            scores, of either sign; by default 5.
        train_ids: ids `[n]` of `train_tokens`, if `with_ids` attached them and
            these are arrays.
        most_tokens: number of tokens to show of each text.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if `tokens` is another result.
        ValueError: if an input of ids of tokens of the length of the scores is
            missing, if the tokenizer does not know an id, if data and result
            do not fit, or if the table is too tall to be drawn.
    """
    figure = new_page()
    if not isinstance(tokens, TokenInfluence):
        raise TypeError(
            "`tokens` should be a TokenInfluence. Received: "
            f"{type(tokens).__name__}. Pass what `token_influence(test)` "
            "returned."
        )
    selection = _select(tokens, queries, k)
    vocabulary = Vocabulary.of(tokenizer, subwords)
    asked = selection.queries(query_tokens, "query_tokens", None)
    trained = selection.examples(
        train_tokens, "train_tokens", None, ids=train_ids
    )
    columns = {id_: at for at, id_ in enumerate(tokens.train_ids.tolist())}
    shown = np.unique(selection.top.proponents.ids)
    scores = tokens.scores[:, [columns[id_] for id_ in shown.tolist()]]
    length = tokens.scores.shape[-1]
    texts = TokenTexts(vocabulary, "train_tokens", length).examples(
        trained.batch, (scores != 0).any(axis=0)
    )
    questions = TokenTexts(vocabulary, "query_tokens").queries(asked.batch)
    rows = []
    for place, row in enumerate(selection.rows):
        chosen = trained.at[place]
        shares = [texts[at].shares(scores[row, at]) for at in chosen]
        largest = max((np.abs(s).max(initial=0) for s in shares), default=0)
        examples = []
        for at, own in zip(chosen, shares, strict=True):
            heading = _heading(tokens, row, columns[shown[at].item()])
            marks = [_mark(share) for share in (own / (largest or 1)).tolist()]
            drafts = begin(figure, texts[at], marks, _SIZE, most_tokens)
            examples.append((heading, drafts))
        question = questions[asked.at[place]]
        asks = set(question.asked)
        marks = [Mark(is_bold=i in asks) for i in range(len(question.pieces))]
        drafts = begin(figure, question, marks, _SIZE, most_tokens)
        rows.append(_Row(drafts, examples))
    _draw(figure, rows, selection)
    return figure


def _select(tokens: TokenInfluence, queries: Any, k: int | None) -> Selection:
    """The queries, each with the examples of its largest scores."""
    result = tokens.attribution
    count = len(tokens.train_ids)
    selection = select(result, queries, 1, _MOST)
    wanted = min(count, _MOST[1]) if k is None else k
    if isinstance(wanted, bool) or not 1 <= wanted <= count:
        raise ValueError(
            f"`k` should be a whole number from 1 to {count}, the training "
            f"examples of `tokens`. Received: {k!r}."
        )
    scores = result.scores[selection.rows]
    largest = np.argsort(-np.abs(scores), axis=1, kind="stable")[:, :wanted]
    own = np.take_along_axis(scores, largest, axis=1)
    order = np.argsort(-own, axis=1, kind="stable")
    places = np.take_along_axis(largest, order, axis=1)
    ranking = Ranking(
        tokens.train_ids[places], np.take_along_axis(scores, places, axis=1)
    )
    none = Ranking(ranking.ids[:, :0], ranking.scores[:, :0])
    chosen = selection.chosen - {"k"} | ({"k"} if k is not None else set())
    return dataclasses.replace(
        selection,
        top=TopK(ranking, none, result.query_ids[selection.rows]),
        available=count,
        chosen=frozenset(chosen),
    )


def _heading(tokens: TokenInfluence, row: int, column: int) -> str:
    """What stands above an example: its score, and what no token has."""
    rest = float(tokens.rest[row, column])
    score = float(tokens.scores[row, column].sum()) + rest
    side = "Proponent" if score >= 0 else "Opponent"
    id_ = tokens.train_ids[column]
    heading = f"{side} {score:+.3g}   id {id_}"
    return f"{heading}   of no token: {rest:+.2g}" if rest else heading


def _mark(share: float) -> Mark:
    """The mark of a piece, by its share of the largest."""
    size = abs(share)
    if size < _LEAST:
        return Mark()
    colour = PROPONENT if share > 0 else OPPONENT
    strength = _PALEST + (_STRONGEST - _PALEST) * size
    return Mark(colour, strength, 0.5 + 1.7 * size, share < 0)


def _draw(figure: Figure, drafts: list[_Row], selection: Selection) -> None:
    from matplotlib.lines import Line2D

    legend = _begin_legend(figure)
    use_fonts(figure)
    rows = [row.lined_up(figure) for row in drafts]
    total = sum(row.height for row in rows) + _FOOT
    if total > _TALLEST:
        raise ValueError(
            f"The table should be at most {_TALLEST} inches tall. Received: "
            f"{len(rows)} queries that need {total:.0f} inches. Pass fewer as "
            "`queries=`, or a smaller `k=` or `most_tokens=`."
        )
    figure.set_size_inches(_WIDTH, total)
    ids = selection.top.query_ids
    top = total
    for row, id_ in zip(rows, ids, strict=True):
        y = _head(figure, _QUERY, top - _ROOM / 2, f"Query {id_}", total)
        _write(figure, _QUERY, y, row.query, total)
        y = top - _ROOM / 2
        for heading, lines in row.examples:
            y = _head(figure, _TEXT, y, heading, total)
            y = _write(figure, _TEXT, y, lines, total) - _ROOM / 2
        top -= row.height
        height = [top / total] * 2
        figure.add_artist(Line2D([0, 1], height, color="#c8c8c8", linewidth=1))
    add_note(figure, _note(selection), "right")
    x = _QUERY
    for drafted in legend:
        (line,) = line_up(figure, drafted, 1e4)
        _write(figure, x, _LINE + 0.04, [line], total)
        x += sum(writing.width for writing in line) / _POINTS + _GAP
    use_fonts(figure)  # of headings


def _note(selection: Selection) -> str:
    """What the figure leaves out unasked, and how to see it; or ""."""
    shown, count = selection.top.proponents.ids.shape[1], selection.available
    parts = [dataclasses.replace(selection, available=shown).note]
    if shown < count and "k" not in selection.chosen:
        parts.append(f"{shown} of {count:,} examples; more by k=")
    return ", ".join(filter(None, parts))


def _head(figure: Figure, x: float, y: float, text: str, total: float) -> float:
    """Writes a heading; returns where the text below it begins."""
    figure.text(
        x / _WIDTH,
        (y - _HEAD * 0.75) / total,
        text,
        parse_math=False,
        fontsize=_SMALL,
        color="#555555",
        va="baseline",
    )
    return y - _HEAD


def _write(
    figure: Figure,
    x: float,
    y: float,
    lines: list[list[Writing]],
    total: float,
) -> float:
    """Places the lines of a text; returns where it ends."""
    for line in lines:
        y -= _LINE
        for writing in line:
            left = x + writing.left / _POINTS
            writing.place(
                figure,
                (left / _WIDTH, (y + 0.3 * _LINE) / total),
                writing.width / _POINTS / _WIDTH,
                (y / total, _LINE / total),
            )
    return y


def _begin_legend(figure: Figure) -> list[list[Draft]]:
    """What the marks say, for the foot."""
    strength, line = _STRONGEST / 2, 1.8
    raises = Mark(PROPONENT, strength, line, False)
    lowers = Mark(OPPONENT, strength, line, True)
    # Spaces that do not break keep each entry one piece, so that a figure saved
    # in fewer dots per inch, where letters are wider, still has them.
    return [
        begin(figure, "raises\xa0the\xa0score", [raises], _SMALL, 1),
        begin(figure, "lowers\xa0it", [lowers], _SMALL, 1),
    ]
