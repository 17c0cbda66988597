"""The rows of docs/errors.md: what the library says, by the key of the case.

A row begins with its key, `<a id="uncompiled"></a>`. Its second column quotes
the message in pieces between backticks, which occur in this order.

Synopsis:

    with pytest.raises(ValueError, match=row("uncompiled", "`loss=`")):
        kt.TracIn(make_model(loss=None), train, run)
"""

import functools
import re

from tests.source_tree import ROOT

_ROW = re.compile(r'^\| <a id="([^"]+)"></a>(.*) \|$', re.M)
_QUOTED = re.compile(r"(`+) ?(.+?) ?\1(?!`)")


@functools.cache
def rows() -> dict[str, str]:
    """What each row quotes, by its key, with `...` for what is between."""
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    return {
        key: "...".join(text for _, text in _QUOTED.findall(cell))
        for key, cells in _ROW.findall(page)
        for cell in [cells.split(" | ")[1]]
    }


def row(key: str, *more: str) -> str:
    """A regular expression for the message of a row.

    Args:
        key: the row's key.
        more: further texts that the message holds, as for `says`.
    """
    return says(rows()[key], *more)


def says(*texts: str) -> str:
    """A regular expression for a message that holds texts, in any order.

    Args:
        texts: the texts; `...` in one of them stands for anything.
    """
    anything = r"[\s\S]*"
    return "".join(
        f"(?={anything}{anything.join(map(re.escape, text.split('...')))})"
        for text in texts
    )
