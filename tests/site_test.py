"""The site is built without a warning, is whole, and needs no network."""

import inspect
import json
import os
import re
import subprocess
import sys
import types
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

import keras_tracin
from tests.error_rows import rows
from tests.public_names import MODULES, PUBLIC
from tests.source_tree import ROOT

LOADED = {"img": "src", "link": "href", "script": "src", "source": "src"}


class Page(HTMLParser):
    """What a page of the site links to, loads and can be linked to by."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.text = text
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if values.get("id"):
            self.ids.add(values["id"])
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag in LOADED and values.get(LOADED[tag]):
            self.loads.append(values[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The directory of the built site.

    Strict: a broken link or anchor, a page that is not in the navigation and a
    name that the package lacks are errors. (With `-q`, nothing would be.)
    """
    directory = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    built = subprocess.run(
        [*command, "--site-dir", str(directory)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return directory


@pytest.fixture(scope="module")
def pages(site):
    return {
        path.relative_to(site).as_posix(): Page(path.read_text("utf-8"))
        for path in site.rglob("*.html")
    }


def test_everything_that_pages_name_is_in_the_site(site, pages):
    missing = []
    for name, page in pages.items():
        if name == "404.html":  # whose addresses begin at the server's root
            continue
        for target in {*page.links, *page.loads}:
            parts = urlsplit(target)
            if parts.scheme or not parts.path:
                continue
            path = (site / name).parent / unquote(parts.path)
            if path.is_dir():
                path /= "index.html"
            if not path.is_file():
                missing.append(f"{name}: {target}")
                continue
            other = pages.get(path.resolve().relative_to(site).as_posix())
            anchor = unquote(parts.fragment)
            if other and anchor and anchor not in other.ids:
                missing.append(f"{name}: {target}")
    assert not missing, missing


def test_pages_load_nothing_from_a_network(pages):
    for name, page in pages.items():
        outside = [
            load
            for load in page.loads
            if urlsplit(load).scheme not in ("", "data") or load[:2] == "//"
        ]
        assert not outside, f"{name} loads {outside}"
        # What the theme would fetch a script for.
        assert 'class="mermaid"' not in page.text, name


def test_no_list_or_table_is_left_as_text(pages):
    paragraph = re.compile(r"<p>(.*?)</p>", re.S)
    raw = re.compile(r"\n *(?:[-*] |1\. |\|)|```|^:::|\]\(\S")
    for name, page in pages.items():
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", page.text, flags=re.S)
        found = [p for p in paragraph.findall(text) if raw.search(p)]
        assert not found, f"{name} shows {found}"


def test_a_linked_source_is_a_page(pages):
    assert "examples/digits.py.html" in pages["gallery.html"].links
    assert "TracInCheckpoint" in pages["examples/digits.py.html"].text


def test_public_names_lead_to_the_reference(pages):
    links = pages["mislabeled.html"].links
    assert "reference/tracin.html#keras_tracin.TracIn" in links
    errors = pages["errors.html"].links
    assert "reference/data.html#keras_tracin.check.check" in errors


def test_reference_has_every_public_name(pages):
    heading = re.compile(
        r'doc-object doc-(\w+)">\s*<h\d id="keras_tracin\.([^"]+)"'
    )
    kinds = {
        name: kind
        for page in pages.values()
        for kind, name in heading.findall(page.text)
    }
    for module in (keras_tracin, *MODULES):
        for name in module.__all__:
            value = getattr(module, name)
            if isinstance(value, str | types.ModuleType):
                continue
            path = f"{module.__name__}.{name}".partition(".")[2]
            # A function may have the name of the package that it is from.
            kind = kinds.get(f"{path}.{name}") or kinds.get(path)
            expected = "class" if inspect.isclass(value) else "function"
            assert kind == expected, path
    for name in PUBLIC:
        kind, _, method = name.partition(".")
        if method and not overrides(PUBLIC[kind], method):
            assert any(path.endswith(name) for path in kinds), name


def overrides(kind, method):
    """Whether a base documents the method, as what every method does."""
    return any(method in vars(base) for base in inspect.getmro(kind)[1:])


def test_reference_shows_how_to_write_a_task(pages):
    assert "digits_task.py" in pages["reference/scripts.html"].text


def test_notebooks_are_shown_with_their_outputs(pages):
    notebooks = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
    assert notebooks
    for notebook in notebooks:
        page = pages[f"examples/notebooks/{notebook.stem}.html"]
        cells = json.loads(notebook.read_text("utf-8"))["cells"]
        outputs = [o for cell in cells for o in cell.get("outputs", ())]
        kinds = [kind for o in outputs for kind in o.get("data", ())]
        figures = sum(kind.startswith("image/") for kind in kinds)
        assert page.text.count('src="data:image/') == figures > 0
        assert page.text.count("output") >= len(outputs)


def test_search_finds_each_error_by_itself(site, pages):
    index = json.loads((site / "search" / "search_index.json").read_text())
    found = {entry["location"]: entry for entry in index["docs"]}
    for key in rows():
        entry = found[f"errors.html#{key}"]
        assert key in pages["errors.html"].ids
        assert entry["title"]
        assert entry["text"]
    uncompiled = found["errors.html#uncompiled"]
    assert uncompiled["title"] == "has no compiled loss"
