"""Builds one page from data, style and script.

Data is never interpreted as markup: it is embedded as JSON without a `<`, and
the script inserts it as text. The content security policy allows only this
script, this style and images inside the page; nothing is loaded.

Synopsis:

    html = build("Digits", data)
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from typing import Any

from keras_tracin._version import __version__

# In this order: a script uses definitions of the scripts before it.
_SCRIPTS = (
    "dom.js",
    "data.js",
    "decisions.js",
    "csv.js",
    "list.js",
    "examples.js",
    "tokens.js",
    "marking.js",
    "filters.js",
    "view.js",
    "review.js",
    "queries.js",
    "summary.js",
    "main.js",
)


def build(title: str, data: dict[str, Any]) -> str:
    """Builds the page; returns its HTML.

    Args:
        title: title of the page.
        data: JSON-compatible data for the script. The browser keeps a user's
            marks under a digest of it, so that reports do not share marks.

    Raises:
        ImportError: if jinja2 is not installed.
    """
    jinja2 = _jinja2()
    content = _json(data)
    digest = hashlib.blake2b(
        content.encode("utf-8", "replace"), digest_size=16
    ).hexdigest()
    style = _asset("page.css")
    code = "\n".join(_asset(name) for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{code}\n}})();\n'
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined
    ).from_string(_asset("page.html"))
    return template.render(
        title=title,
        version=__version__,
        digest=digest,
        policy=_policy(script, style),
        style=style,
        script=script,
        data=content,
    )


def _jinja2() -> Any:
    try:
        import jinja2
    except ImportError as error:
        raise ImportError(
            "keras_tracin.report needs jinja2, which is not installed. Install "
            "the `report` extra: pip install 'keras_tracin[report]'."
        ) from error
    return jinja2


def _asset(name: str) -> str:
    assets = importlib.resources.files("keras_tracin.report") / "assets"
    return (assets / name).read_text(encoding="utf-8")


def _json(data: dict[str, Any]) -> str:
    """JSON without `<`, so that it cannot close its script element."""
    text = json.dumps(
        data, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.replace("<", "\\u003c")


def _policy(script: str, style: str) -> str:
    """Content security policy: this script and style, images in the page."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_sha256(script)}'",
            f"style-src '{_sha256(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def _sha256(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
