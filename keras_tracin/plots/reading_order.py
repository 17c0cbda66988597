"""Where texts are read to, and the order in which their letters are drawn.

Synopsis:

    direction("שלום")        # "R"
    in_order("שלום")         # reversed, where matplotlib draws it rightwards
"""

from __future__ import annotations

import unicodedata

_KNOWS_ORDER = (3, 11)  # of matplotlib: the first to draw letters leftwards


def direction(text: str) -> str | None:
    """Where a text is read to, by its first letter: "L", "R" or None."""
    for letter in text:
        kind = unicodedata.bidirectional(letter)
        if kind == "L":
            return "L"
        if kind in ("R", "AL"):
            return "R"
    return None


def in_order(text: str) -> str:
    """The letters as matplotlib draws them, which before 3.11 is rightwards."""
    import matplotlib as mpl

    release = tuple(map(int, mpl.__version__.split(".")[:2]))
    if release >= _KNOWS_ORDER or direction(text) != "R":
        return text
    letters: list[str] = []
    for letter in text:
        if letters and unicodedata.combining(letter):
            letters[-1] += letter
        else:
            letters.append(letter)
    return "".join(reversed(letters))
