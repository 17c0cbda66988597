"""Cuts and wraps texts by the width that a font gives them.

Synopsis:

    lines = wrap(shorten(text, letters=250), width=400, size=8.5)
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator

_ROUNDING = 1.03  # the widths of small letters are rounded to pixels
_UNKNOWN = 0.65  # width of a letter that the font lacks, in its size

_POINTS = 100  # the size that letters are measured at


def shorten(text: str, letters: int) -> str:
    """The beginning of a text in one line, with "…" where it was cut.

    Words stay whole, but for those of half the length and more.
    """
    plain = " ".join(text.split())
    if len(plain) <= letters:
        return plain
    opening = plain[: max(1, letters - 2)]
    at_word = opening.rfind(" ")
    if at_word >= len(opening) / 2:
        opening = opening[:at_word]
    return f"{opening.rstrip()} …"


def shorten_name(text: str, width: float, size: float) -> str:
    """A name in one line of this width; of a path, its end.

    Args:
        text: the name.
        width: width of a line, in points.
        size: size of the font, in points.
    """
    plain = " ".join(text.split())
    if width_of(plain, size) <= width:
        return plain
    is_path = "/" in plain or "\\" in plain
    while plain and width_of(f"{plain}…", size) > width:
        plain = plain[1:] if is_path else plain[:-1]
    return f"…{plain}" if is_path else f"{plain.rstrip()}…"


def wrap_name(text: str, width: float, size: float, most: int) -> list[str]:
    """A name in a few lines of this width; what does not fit is cut.

    Args:
        text: the name; its own lines stay apart.
        width: width of a line, in points.
        size: size of the font, in points.
        most: number of lines.
    """
    lines: list[str] = []
    for part in text.split("\n"):
        is_one_word = len(part.split()) == 1
        short = [shorten_name(part, width, size)]
        lines += short if is_one_word else wrap(part, width, size)
    if len(lines) <= most:
        return lines
    rest = " ".join(lines[most - 1 :])
    return [*lines[: most - 1], shorten_name(rest, width, size)]


def wrap(
    text: str, width: float, size: float, is_bold: bool = False
) -> list[str]:
    """Breaks a text into lines of at most this width.

    It is broken between words, between characters of Chinese and Japanese, and
    within a word that fills a line.

    Args:
        text: a text in one line.
        width: width of a line, in points.
        size: size of the font, in points.
        is_bold: whether it is drawn bold.
    """
    lines, line = [], ""
    for piece in _pieces(text):
        if line and width_of(line + piece.rstrip(), size, is_bold) > width:
            lines.append(line.rstrip())
            line = ""
        line += piece
        while len(line) > 1 and width_of(line.rstrip(), size, is_bold) > width:
            end = next(
                end
                for end in range(len(line) - 1, 0, -1)
                if end == 1 or width_of(line[:end], size, is_bold) <= width
            )
            lines.append(line[:end])
            line = line[end:]
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def width_of(text: str, size: float, is_bold: bool = False) -> float:
    """Width of a text in points, or a little more."""
    return _ROUNDING * size * sum(_advance(letter, is_bold) for letter in text)


def is_wide(letter: str) -> bool:
    """Whether a character fills a square, as those of Chinese do."""
    return unicodedata.east_asian_width(letter) in "WF"


def _pieces(text: str) -> Iterator[str]:
    """Words with the space after them, and wide characters alone."""
    piece = ""
    for letter in text:
        ends = piece and (
            is_wide(letter)
            or is_wide(piece[-1])
            or (piece[-1] == " " and letter != " ")
        )
        if ends:
            yield piece
            piece = ""
        piece += letter
    if piece:
        yield piece


@functools.lru_cache(maxsize=10_000)
def _advance(letter: str, is_bold: bool) -> float:
    """Width of a letter in the default font, in the font's size."""
    if is_wide(letter):
        return 1.0
    font = _default_font(is_bold)
    if font.get_char_index(ord(letter)) == 0:
        return _UNKNOWN
    return font.load_char(ord(letter)).linearHoriAdvance / 65536 / _POINTS


@functools.lru_cache(maxsize=2)
def _default_font(is_bold: bool):
    from matplotlib.font_manager import FontProperties, findfont
    from matplotlib.ft2font import FT2Font

    weight = "bold" if is_bold else "normal"
    font = FT2Font(findfont(FontProperties(weight=weight)))
    font.set_size(_POINTS, 72)
    return font
