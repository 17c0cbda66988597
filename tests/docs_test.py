"""Public names are documented; what pages show and link to is there."""

import ast
import dataclasses
import inspect
import re
import textwrap

import pytest

import keras_tracin
from keras_tracin import scripts
from keras_tracin.scripts import task
from tests import error_rows, source_tree
from tests.public_names import MODULES, PUBLIC
from tests.source_tree import ROOT

PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
        ROOT / "examples" / "README.md",
        ROOT / "benchmarks" / "README.md",
    ]
)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
each_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


each_public = pytest.mark.parametrize("name", PUBLIC)


def section(text, *names):
    """The part of a docstring under one of these headings."""
    pattern = rf"^(?:{'|'.join(names)}):\n((?:[ ]+.*\n|\n)*)"
    found = re.findall(pattern, f"{text}\n", re.M)
    return textwrap.dedent("".join(found))


def documented(text):
    """The names that have an entry under Args or Attributes."""
    entries = section(text, "Args", "Attributes")
    return set(re.findall(r"^\*{0,2}(\w+)(?: \(.*?\))?:", entries, re.M))


def parameters_of(value):
    """The names of a callable's public parameters."""
    if dataclasses.is_dataclass(value):
        return {f.name for f in dataclasses.fields(value) if f.init}
    if inspect.isclass(value) and "__init__" not in vars(value):
        return set()
    names = inspect.signature(value).parameters
    return {name for name in names if name not in ("self", "cls")}


@each_public
def test_every_parameter_is_documented(name):
    value = PUBLIC[name]
    text = inspect.getdoc(value) or ""
    assert text, f"{name} has no docstring"
    missing = parameters_of(value) - documented(text) - inherited(name)
    # A method of one obvious argument may say it in its only sentence.
    told = {word for word in missing if f"`{word}`" in text}
    told |= {word for word in missing if word in OBVIOUS}
    assert not missing - told, f"{name} leaves out {sorted(missing - told)}"


OBVIOUS = {"path", "verbose"}


def inherited(name):
    """The names that a base class documents of the method it overrides."""
    kind, _, method = name.partition(".")
    if not method:
        return set()
    bases = PUBLIC[kind].__mro__[1:]
    texts = [getattr(vars(base).get(method), "__doc__", "") for base in bases]
    return set().union(*(documented(inspect.cleandoc(t or "")) for t in texts))


@each_public
def test_what_a_function_raises_itself_is_documented(name):
    value = PUBLIC[name]
    is_class = inspect.isclass(value)
    own = vars(value).get("__init__") if is_class else value
    if not inspect.isfunction(own) or own.__name__ == "__create_fn__":
        return
    try:
        source = textwrap.dedent(inspect.getsource(own))
    except (OSError, TypeError):  # made by `dataclass`
        return
    raised = {
        node.exc.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Raise)
        and isinstance(node.exc, ast.Call)
        and isinstance(node.exc.func, ast.Name)
    }
    text = section(inspect.getdoc(value) or "", "Raises")
    missing = {error for error in raised if error not in text}
    assert not missing, f"{name} raises {missing}, which Raises leaves out"


@each_public
def test_example_is_set_as_code(name):
    text = inspect.getdoc(PUBLIC[name]) or ""
    flowing = section(text, "Example", "Synopsis").strip()
    assert not flowing, f"{name}: set this between ``` lines: {flowing}"


def test_synopsis_of_a_page_is_set_as_code():
    for module in (keras_tracin, *MODULES, scripts, task):
        assert not section(module.__doc__, "Example", "Synopsis").strip()


@each_page
def test_relative_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name} links to {link}"


def anchors(page):
    """The anchors of a page: headings, as GitHub makes them, and its own."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.M)
    } | set(re.findall(r'<a id="(.+?)">', text))


@each_page
def test_python_that_pages_show_compiles(page):
    for language, code in FENCE.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            compile(code, str(page), "exec")


def test_every_error_on_the_page_is_raised_by_a_test():
    asked = {
        key
        for module, path in source_tree.modules().items()
        if module.startswith("tests.")
        for key in keys_asked_for(source_tree.parse(path))
    }
    assert len(error_rows.rows()) > 150
    untested = error_rows.rows().keys() - asked
    assert not untested, f"no test raises {sorted(untested)}"
    unknown = asked - error_rows.rows().keys()
    assert not unknown, f"errors.md has no {sorted(unknown)}"


def keys_asked_for(tree):
    """The keys of the rows of errors.md that a module asks for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "row":
            yield ast.literal_eval(node.args[0])


def test_every_row_of_errors_has_a_key_of_its_own_and_quotes_an_error():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    tables = sum(line.startswith("| --- ") for line in lines)
    # Every table has two lines before its rows.
    assert len(error_rows.rows()) == len(lines) - 2 * tables
    assert all(error_rows.rows().values())
