"""Puts data, style and script together to one page that loads nothing.

Whatever the data holds stays text: it is embedded as JSON without a `<`, the
script makes no markup of it, and the page's policy lets a browser run this one
script and style, show images that are in the page, and load nothing.

Synopsis:

    html = build("Digits", {"classes": None, …})
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from typing import Any

from keras_tracin._version import __version__

# In this order: each uses what those before it define.
_SCRIPTS = (
    "dom.js",
    "data.js",
    "decisions.js",
    "csv.js",
    "list.js",
    "examples.js",
    "marking.js",
    "filters.js",
    "view.js",
    "review.js",
    "queries.js",
    "main.js",
)


def build(title: str, data: dict[str, Any]) -> str:
    """The page's text.

    Args:
        title: of the page.
        data: what the script shows, of types that JSON has. A digest of it
            tells apart what different reports keep in a browser.

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
    """JSON that cannot end the element that it is in, nor begin another."""
    text = json.dumps(
        data, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    )
    return text.replace("<", "\\u003c")


def _policy(script: str, style: str) -> str:
    """What a browser lets the page do: nothing but show itself."""
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
