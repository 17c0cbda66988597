"""Makes one site of the repository's pages as they stand; mkdocs.yml names it.

MkDocs takes pages from one folder, but those of this repository are in several,
and link to each other, to notebooks and to sources by paths that lead somewhere
on GitHub. Here every page is known to MkDocs by its path in the repository, so
these links lead to the same in the site, and MkDocs checks them. A notebook
becomes a page with its outputs. A linked source becomes a page, any other
linked file is copied.

Synopsis:

    mkdocs build --strict    # writes out/site
"""

import ast
import functools
import json
import posixpath
import re
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "*.md",
    "docs/**/*.md",
    "examples/**/*.md",
    "examples/notebooks/*.ipynb",
    "benchmarks/**/*.md",
)
PICTURES = ("docs/*.png", "examples/*.png", "benchmarks/*.png")
_ITEM = re.compile(r"(?:[-*]|\d+\.) +")
_LINK = re.compile(
    r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)"
)
_FENCE = re.compile(r"^(`{3,}).*?^\1$", re.M | re.S)
# Headings, links and longer code are left alone.
_CODE = re.compile(
    r"^#.*$|\[[^\]]*\]\([^)]*\)|``.+?``|`(?P<code>[^`\n]+)`", re.M
)
_NAME = re.compile(r"(?P<kt>kt\.)?(?P<name>\w+(?:\.\w+)?)(?:\(.*)?$")
_SHOWN = re.compile(r"^::: keras_tracin\.(\S+)$", re.M)
_ALL = re.compile(r"^__all__ = (\[.*?\])", re.M | re.S)
_ERROR_ROW = re.compile(
    r'^\| <a id="([^"]+)"></a>(.*?) \| (.*?) \| (.*) \|$', re.M
)


class _Page(File):
    """A page of the site, whatever kind of file it is made from."""

    def is_documentation_page(self) -> bool:
        return True


def on_files(files: Files, config) -> Files:
    """Puts files at the places where links expect them."""
    styles = "site/"
    kept = [
        file
        for file in files  # of the theme, too
        if file.src_dir != config.docs_dir or file.src_uri.startswith(styles)
        if not file.src_uri.endswith(".py")
    ]
    paths = {path for pattern in PAGES for path in ROOT.glob(pattern)}
    linked = {link for path in paths for link in _linked_files(path)} - paths
    linked |= {path for pattern in PICTURES for path in ROOT.glob(pattern)}
    pages = [_file(path, config, _Page) for path in sorted(paths)]
    for path in sorted(linked):
        is_source = path.suffix == ".py"
        kept.append(_file(path, config, _Page if is_source else File))
    return Files([*kept, *pages])


def on_page_read_source(page, config) -> str | None:
    """Reads notebooks and sources as Markdown."""
    path = Path(page.file.abs_src_path)
    if path.suffix == ".ipynb":
        return _notebook(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".py":
        front = "---\nsearch:\n  exclude: true\nhide: [toc]\n---\n"
        code = path.read_text(encoding="utf-8")
        return f"{front}# {page.file.src_uri}\n\n````python\n{code}````\n"
    return None


def on_page_markdown(markdown: str, page, config, files: Files) -> str:
    """Makes Markdown as GitHub reads it into what MkDocs reads alike.

    A link to a folder leads to its page; without one, its name is text. Public
    names lead to the reference.
    """

    def lead(match: re.Match) -> str:
        _, text, target, _ = match.groups()
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join(folder, target))
        if not (ROOT / path).is_dir():
            return match[0]
        known = f"{path}/README.md" in files.src_uris
        return f"[{text}]({target}/README.md)" if known else text

    def change(text: str) -> str:
        return _indent_lists(_CODE.sub(_name, _LINK.sub(lead, text)))

    return _outside_fences(markdown, change)


@event_priority(-100)  # when the search plugin has written its index
def on_post_build(config) -> None:
    """Makes every row of the page of errors a result of its own."""
    index_path = Path(config.site_dir) / "search" / "search_index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for key, did, seen, remedy in _ERROR_ROW.findall(page):
        index["docs"].append(
            {
                "location": f"errors.html#{key}",
                "title": _plain(seen),
                "text": f"<p>You {_plain(did)}. {_plain(remedy)}</p>",
            }
        )
    index_path.write_text(json.dumps(index), encoding="utf-8")


def _file(path: Path, config, kind: type[File]) -> File:
    """The file, with its path in the repository and its place in the site."""
    uri = path.relative_to(ROOT).as_posix()
    place = uri.removeprefix("docs/")
    if kind is _Page:
        stem = place.removesuffix(".md").removesuffix(".ipynb")
        if uri != "README.md":
            stem = re.sub(r"(^|/)README$", r"\1index", stem)
        place = f"{'overview' if stem == 'README' else stem}.html"
    in_navigation = path.suffix != ".py"
    file = kind(
        uri,
        str(ROOT),
        config.site_dir,
        config.use_directory_urls,
        dest_uri=place,
        inclusion=InclusionLevel.UNDEFINED
        if in_navigation
        else InclusionLevel.NOT_IN_NAV,
    )
    file.name = Path(place).stem  # README.md of the root is no index here
    return file


def _linked_files(page: Path) -> set[Path]:
    """Files of the repository that a page links to."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    targets = set()
    for match in _LINK.finditer(_FENCE.sub("", text)):
        target = (page.parent / match[3]).resolve()
        if target.is_file() and target.is_relative_to(ROOT):
            targets.add(target)
    return targets


def _name(match: re.Match) -> str:
    """The code that names something public, as a link to it."""
    code = match["code"] or ""
    called = _NAME.match(code)
    if called is None:
        return match[0]
    target = _names_of_reference().get(called["name"])
    # `check` alone is a word; `kt.check`, `TracIn` and `with_ids` are names.
    is_word = re.fullmatch("[a-z]+", called["name"]) and not called["kt"]
    if target is None or is_word:
        return match[0]
    return f"[`{code}`][{target}]"


@functools.cache
def _names_of_reference() -> dict[str, str]:
    """Where the reference shows a name that follows `keras_tracin.`."""
    places = {}
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        for name in _SHOWN.findall(path.read_text(encoding="utf-8")):
            places[name] = name
            package, _, function = name.partition(".")
            if package == function:  # `check`, which hides its package
                places[package] = name
            module = ROOT / "keras_tracin" / name
            for source in (module / "__init__.py", module.with_suffix(".py")):
                if source.exists():
                    del places[name]  # a module's heading is the page's
                    text = source.read_text(encoding="utf-8")
                    listed = _ALL.search(text)
                    for each in ast.literal_eval(listed[1]) if listed else ():
                        places[f"{name}.{each}"] = f"{name}.{each}"
    return {name: f"keras_tracin.{place}" for name, place in places.items()}


def _outside_fences(markdown: str, change) -> str:
    """Changes Markdown but for its blocks of code."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])


def _indent_lists(text: str) -> str:
    """Sets lists as Python-Markdown needs them where GitHub takes less.

    What continues an item is indented by four spaces, and a list that follows
    a paragraph by a blank line from it.
    """
    lines: list[str] = [""]
    width, is_loose = 0, False
    for line in text.split("\n"):
        item = _ITEM.match(line)
        if item and (width or item[0].startswith(("-", "*", "1. "))):
            if lines[-1].strip() and (is_loose or not width):
                lines.append("")
            width, is_loose = len(item[0]), False
        elif width and not line.strip():
            is_loose = True
        elif width and line.startswith(" " * width):
            line = " " * 4 + line[width:]
        elif width and not lines[-1].strip():
            width = 0
        lines.append(line)
    return "\n".join(lines[1:])


def _notebook(notebook: dict) -> str:
    """A notebook's cells and outputs as Markdown."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif source.strip():
            parts.append(f"````python\n{source}\n````")
        parts += [_output(output) for output in cell.get("outputs", [])]
    return "\n\n".join(parts) + "\n"


def _output(output: dict) -> str:
    """An output of a cell as Markdown: a picture, a table or text."""
    if output["output_type"] == "stream":
        return _text_output(output["text"])
    data = output["data"]
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            picture = "".join("".join(data[kind]).split())
            source = f"data:{kind};base64,{picture}"
            return f'<img class="output" alt="Figure" src="{source}">'
    if "text/html" in data:
        table = re.sub(
            r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S
        )
        table = re.sub(r"<(table|tr|th)\b[^>]*>", r"<\1>", table)  # as others
        lines = [line.strip() for line in table.splitlines() if line.strip()]
        return '<div class="output">' + "\n".join(lines) + "</div>"
    return _text_output(data["text/plain"])


def _text_output(lines: list[str] | str) -> str:
    text = "".join(lines).rstrip("\n")
    return f"````{{ .text .output }}\n{text}\n````"


def _plain(cell: str) -> str:
    """The text of a table's cell without marks of Markdown."""
    cell = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", cell)
    cell = re.sub(r"(`+) ?(.+?) ?\1(?!`)", r"\2", cell.replace("\\|", "|"))
    for mark, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        cell = cell.replace(mark, name)
    return cell
