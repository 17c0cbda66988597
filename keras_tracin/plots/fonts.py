"""Fonts for letters that matplotlib's own font lacks, such as Chinese.

Synopsis:

    use_fonts(figure)        # once all of its texts are there
"""

from __future__ import annotations

import functools
import unicodedata
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from keras_tracin.plots.wrapping import is_wide

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fonts to try first: they have many letters, and are in use.
_PREFERRED = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "Source Han Sans",
    "PingFang SC",
    "Hiragino Sans",
    "Hiragino Sans GB",
    "Microsoft YaHei",
    "Yu Gothic",
    "Meiryo",
    "Malgun Gothic",
    "SimHei",
    "MS Gothic",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "IPAexGothic",
    "IPAGothic",
    "Noto Sans",
    "Noto Emoji",
    "Arial Unicode MS",
)
_NO_LETTERS = ("LastResort", ".LastResort")  # a box for each letter
_PLACEHOLDER = "\u25a1"  # a white square, for letters without a font
_hinted: set[str] = set()  # scripts that a warning has named


def use_fonts(figure: Figure) -> None:
    """Gives the texts of a figure fonts that have their letters.

    Letters that no installed font has become squares, and a warning says once
    for each script what to install.
    """
    from matplotlib.text import Text

    texts = [t for t in figure.findobj(Text) if isinstance(t, Text)]
    letters = {c for t in texts for c in t.get_text() if not c.isspace()}
    own = _own_families()
    missing = frozenset(letters - _covered(letters, own))
    if not missing:
        return
    families = _families_for(missing)
    unknown = missing - _covered(missing, families)
    family = [*own, *families]
    squares = {ord(letter): _PLACEHOLDER for letter in unknown}
    for text in texts:
        if missing & set(text.get_text()):
            text.set_fontfamily(family)
            text.set_text(text.get_text().translate(squares))
    # A tick takes its text from its axis each time it is drawn.
    for axis in (axis for a in figure.axes for axis in (a.xaxis, a.yaxis)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if missing & set("".join(labels)):
            axis.set_ticklabels(
                [label.translate(squares) for label in labels],
                fontfamily=family,
            )
    if unknown:
        _hint(unknown)


def _own_families() -> list[str]:
    """The families that matplotlib draws with, those that are installed."""
    import matplotlib as mpl

    names: list[str] = []
    settings: Any = mpl.rcParams
    for family in settings["font.family"]:
        names += settings.get(f"font.{family}", [family])
    installed = _installed()
    return [name for name in names if name in installed] or ["DejaVu Sans"]


def _installed() -> dict[str, str]:
    """Files of the installed fonts by family; regular ones first."""
    from matplotlib.font_manager import fontManager

    entries = sorted(
        fontManager.ttflist,
        key=lambda e: (e.style != "normal", e.weight not in (400, "normal")),
    )
    return {
        entry.name: entry.fname
        for entry in reversed(entries)
        if not entry.name.replace(" ", "").startswith(_NO_LETTERS)
        and "Color" not in entry.name  # cannot be drawn
    }


def _families_for(missing: frozenset[str]) -> list[str]:
    """Families that have these letters together, in order of preference."""
    installed = _installed()
    order = [name for name in _PREFERRED if name in installed]
    order += sorted(set(installed) - set(order))
    families = []
    for name in order:
        new = _covered(missing, [name])
        if new:
            families.append(name)
            missing -= new
        if not missing:
            break
    return families


def _covered(letters: Iterable[str], families: Iterable[str]) -> set[str]:
    """Those of the letters that one of the families has."""
    installed = _installed()
    return {
        letter
        for name in families
        for letter in letters
        if _has(installed[name], letter)
    }


def _has(path: str, letter: str) -> bool:
    font = _open(path)
    return font is not None and font.get_char_index(ord(letter)) != 0


@functools.lru_cache(maxsize=64)
def _open(path: str):
    from matplotlib.ft2font import FT2Font

    try:
        return FT2Font(path)
    except (OSError, RuntimeError):  # a kind that cannot be drawn
        return None


def _hint(unknown: Iterable[str]) -> None:
    """Says once for each script that no font has its letters."""
    import matplotlib as mpl

    scripts = {_script_of(letter): letter for letter in sorted(unknown)}
    new = sorted(set(scripts) - _hinted)
    if not new:
        return
    _hinted.update(new)
    named = ", ".join(f"{script} ({scripts[script]})" for script in new)
    warnings.warn(
        "No installed font has these letters, which are drawn as squares: "
        f"{named}. Install a font that has them, such as Noto Sans CJK for "
        "Chinese, Japanese and Korean (`apt install fonts-noto-cjk`), delete "
        f"{mpl.get_cachedir()}/fontlist*.json, and start Python again.",
        UserWarning,
        stacklevel=4,
    )


def _script_of(letter: str) -> str:
    """The script of a letter, from its name; of no script, "symbols"."""
    if unicodedata.category(letter).startswith("S"):
        return "symbols"
    word = unicodedata.name(letter, "UNNAMED").split()[0]
    if is_wide(letter) and word in ("CJK", "FULLWIDTH", "IDEOGRAPHIC"):
        return "Chinese"
    return word.split("-")[0].capitalize()
