"""Lines of pieces of text, each with its own mark.

Pieces that are read from right to left stand in that order.

Synopsis:

    draft = begin(figure, text, marks, size=9, most=100)
    use_fonts(figure)                        # once all of its texts are there
    lines = line_up(figure, draft, width=400)
    writing = lines[0][0]
    writing.place(figure, (0.1, 0.5), 0.2, (0.48, 0.05))
"""

from __future__ import annotations

import dataclasses
import itertools
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from keras_tracin.data.subwords import Piece
from keras_tracin.data.token_texts import Text
from keras_tracin.plots.reading_order import direction, in_order
from keras_tracin.plots.wrapping import is_wide, width_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NEW_LINE = "↵"  # what a line break of a text is shown as
_POINTS = 72
_ROUNDED = 1.03  # what `width_of` adds


@dataclasses.dataclass(frozen=True)
class Mark:
    """How a piece is drawn.

    Attributes:
        colour: of what is behind it; None for nothing.
        strength: how much of the colour is mixed in.
        line: width of the line below, in points.
        is_dashed: whether that line is dashed.
        is_bold: whether its letters are bold.
    """

    colour: str | None = None
    strength: float = 0.0
    line: float = 0.0
    is_dashed: bool = False
    is_bold: bool = False

    @property
    def line_colour(self) -> Any:
        """A darker shade, to be seen before the colour."""
        from matplotlib.colors import to_rgb

        return tuple(0.6 * part for part in to_rgb(self.colour or "black"))


@dataclasses.dataclass(frozen=True)
class Writing:
    """A piece of text in a line.

    Attributes:
        artist: matplotlib's text.
        left: where it begins, in points from the left of the line.
        indent: width of the spaces at its left.
        width: its width, with spaces.
        mark: how it is drawn.
    """

    artist: Any
    left: float
    indent: float
    width: float
    mark: Mark

    def place(
        self,
        figure: Figure,
        at: tuple[float, float],
        width: float,
        band: tuple[float, float],
    ) -> None:
        """Puts the piece where it belongs, with what is behind and below it.

        Args:
            figure: the figure.
            at: left end of its baseline, as shares of the figure.
            width: its width, likewise.
            band: lower edge and height of what is behind it.
        """
        from matplotlib.lines import Line2D
        from matplotlib.patches import Rectangle

        x, baseline = at
        indent = width * self.indent / self.width if self.width else 0
        self.artist.set_position((x + indent, baseline))
        low, height = band
        if self.mark.colour is None:
            return
        figure.add_artist(
            Rectangle(
                (x, low),
                width,
                height * 0.96,
                facecolor=self.mark.colour,
                alpha=self.mark.strength,
                linewidth=0,
                zorder=0,
            )
        )
        figure.add_artist(
            Line2D(
                [x + indent, x + width],
                [low + 0.12 * height] * 2,
                color=self.mark.line_colour,
                linewidth=self.mark.line,
                linestyle=(0, (2.2, 1.1)) if self.mark.is_dashed else "-",
                solid_capstyle="butt",
                dash_capstyle="butt",
                zorder=1,
            )
        )


@dataclasses.dataclass(frozen=True)
class Draft:
    """A piece of a text, before it has a place.

    Attributes:
        text: the piece.
        artist: matplotlib's text of it, without the spaces before.
        mark: how it is drawn.
        space: width of a space, in points.
    """

    text: str
    artist: Any
    mark: Mark
    space: float


def begin(
    figure: Figure,
    text: Text | str,
    marks: Sequence[Mark],
    size: float,
    most: int,
) -> list[Draft]:
    """Adds the pieces of a text to a figure, to be lined up.

    Args:
        figure: the figure.
        text: the text.
        marks: the mark of each piece.
        size: size of the font, in points.
        most: number of pieces; what follows is left out, and "…" stands for
            it.
    """
    pieces = text.pieces if isinstance(text, Text) else [Piece(text, ())]
    parts = list(_parts(pieces[:most], marks))
    if len(pieces) > most:
        parts.append((" …", Mark()))
    space = width_of(" ", size) / _ROUNDED
    drafts = []
    for part, mark in parts:
        visible = _NEW_LINE if part == "\n" else part.strip(" ")
        artist = figure.text(
            0,
            0,
            in_order(_visible(visible)),
            parse_math=False,
            fontsize=size,
            fontweight="bold" if mark.is_bold else "normal",
            va="baseline",
            zorder=3,
        )
        drafts.append(Draft(part, artist, mark, space))
    return drafts


def line_up(
    figure: Figure, drafts: list[Draft], width: float
) -> list[list[Writing]]:
    """Breaks a text into lines, and places its pieces in them.

    Args:
        figure: the figure, whose texts have their fonts.
        drafts: the pieces.
        width: width of a line, in points.
    """
    from matplotlib.backends.backend_agg import RendererAgg

    renderer = RendererAgg(1, 1, figure.dpi)
    measured = [_measured(renderer, draft) for draft in drafts]
    lines = _break(measured, width)
    whole = "".join(draft.text for draft in drafts)
    is_leftward = direction(whole) == "R"
    return [_ordered(line, width, is_leftward) for line in lines]


def _parts(pieces: Sequence[Piece], marks: Sequence[Mark]):
    """Pieces, or what of them may stand in several lines, with their marks."""
    for piece, mark in zip(pieces, marks, strict=False):
        text = piece.text.replace("\r", "").replace("\t", "    ")
        for count, line in enumerate(text.split("\n")):
            if count:
                yield "\n", mark
            words = line.split(" ")
            for place, word in enumerate(words):
                part = f" {word}" if place else word
                if any(map(is_wide, part)):
                    yield from ((letter, mark) for letter in part)
                elif part:
                    yield part, mark


@dataclasses.dataclass(frozen=True)
class _Measured:
    text: str
    artist: Any
    indent: float
    width: float
    mark: Mark


def _measured(renderer: Any, draft: Draft) -> _Measured:
    """A piece with its width, in points."""
    part, artist = draft.text, draft.artist
    extent = 0.0
    if artist.get_text():
        extent = artist.get_window_extent(renderer).width
    spaces = 0 if part == "\n" else len(part) - len(part.lstrip(" "))
    indent = draft.space * spaces
    own = extent * _POINTS / renderer.dpi
    return _Measured(part, artist, indent, indent + own, draft.mark)


def _visible(text: str) -> str:
    """The text without what has no width of its own, such as controls."""
    return "".join(
        letter
        if unicodedata.category(letter) != "Cc"
        else "\N{REPLACEMENT CHARACTER}"
        for letter in text
    )


def _break(parts: list[_Measured], width: float) -> list[list[_Measured]]:
    """Lines of at most this width, broken at spaces and wide letters."""
    lines: list[list[_Measured]] = [[]]
    left = 0.0
    for word in _words(parts):
        length = sum(part.width for part in word)
        if lines[-1] and left + length > width:
            lines.append([])
            left = 0.0
            word[0] = dataclasses.replace(
                word[0], indent=0.0, width=word[0].width - word[0].indent
            )
        for part in word:
            if lines[-1] and left + part.width > width:  # longer than a line
                lines.append([])
                left = 0.0
            lines[-1].append(part)
            left += part.width
        if word[-1].text == "\n":
            lines.append([])
            left = 0.0
    return [line for line in lines if line] or [[]]


def _words(parts: list[_Measured]) -> list[list[_Measured]]:
    """Parts that are not to be separated."""
    words: list[list[_Measured]] = []
    for part in parts:
        before = words[-1][-1].text if words else "\n"
        apart = (
            part.text.startswith(" ")
            or before.endswith(" ")
            or is_wide(part.text[:1] or " ")
            or is_wide(before[-1:])
        )
        if before == "\n" or (apart and part.text != "\n"):
            words.append([part])
        else:
            words[-1].append(part)
    return words


def _ordered(
    line: list[_Measured], width: float, is_leftward: bool
) -> list[Writing]:
    """Parts of a line, placed in the order that they are seen in."""
    base = "R" if is_leftward else "L"
    directions: list[str] = []
    for part in line:
        own = direction(part.text)
        if own is None:
            # A number is read rightwards, but parts no other words.
            number = any(letter.isdigit() for letter in part.text)
            own = "number" if number and is_leftward else base
        directions.append(own)
    runs = [
        (way, [part for part, _ in run])
        for way, run in itertools.groupby(
            zip(line, directions, strict=True), key=lambda pair: pair[1]
        )
    ]
    placed = []
    left = width - sum(part.width for part in line) if is_leftward else 0.0
    for way, run in _reversed_if(is_leftward, runs):
        apart = 0.0
        if way != base:  # the space before it is of the line around it
            apart, first = run[0].indent, run[0]
            width = first.width - apart
            run[0] = dataclasses.replace(first, indent=0.0, width=width)
        left += 0.0 if is_leftward else apart
        for part in _reversed_if(way == "R", run):
            # The space of a word that is read leftwards is at its right.
            indent = 0.0 if way == "R" else part.indent
            placed.append(
                Writing(part.artist, left, indent, part.width, part.mark)
            )
            left += part.width
        left += apart if is_leftward else 0.0
    return placed


def _reversed_if(condition: bool, values: list[Any]) -> list[Any]:
    return values[::-1] if condition else values
