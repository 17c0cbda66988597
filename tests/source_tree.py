"""The repository's Python files, what they import, and their BUILD targets.

A module's name is dotted, `keras_tracin.gradients.capture`; a package's is that
of its directory. Its BUILD target is named after its path without `.py`,
`keras_tracin/gradients/capture`; a package's `__init__.py` after the directory.
"""

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# Not resolved: under Bazel the files are links into the checkout.
ROOT = Path(__file__).absolute().parents[1]
TOP_LEVEL = ("benchmarks", "examples", "keras_tracin", "tests")
TEST_MAIN = "tests/__main__.py"
DATA = {"tests/repository_test.py": ":repository"}
# Modules that read files which are installed with them.
ASSETS = {"keras_tracin/report/page.py": "keras_tracin/report/assets/*"}

Target = dict[str, Any]


def modules() -> dict[str, Path]:
    """Every module of the repository with its path relative to the root."""
    paths = sorted(
        path.relative_to(ROOT)
        for directory in TOP_LEVEL
        for path in (ROOT / directory).rglob("*.py")
    )
    return {".".join(_target_name(path).split("/")): path for path in paths}


def parse(path: Path) -> ast.Module:
    """The syntax tree of a file named relative to the root."""
    return ast.parse((ROOT / path).read_text(encoding="utf-8"), str(path))


def first_party_imports(module: str, known: dict[str, Path]) -> set[str]:
    """Modules of this repository that `module` imports, anywhere in its file.

    `from package import name` is an import of the module `package.name` where
    there is one, otherwise of `package`.
    """
    path = known[module]
    is_package = path.name == "__init__.py"
    package = module if is_package else module.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            submodules = names & known.keys()
            found.update(submodules)
            if submodules != names:
                found.add(base)
    found.discard(module)
    return {name for name in found if name.split(".")[0] in TOP_LEVEL}


def expected_target(module: str, known: dict[str, Path]) -> str:
    """The text that BUILD should have for a module."""
    path = known[module]
    name = _target_name(path)
    dependencies = first_party_imports(module, known)
    if path.name.endswith("_test.py"):
        # pytest reads the `conftest.py` of a test's directory and those above.
        conftests = {
            ".".join([*parent.parts, "conftest"]) for parent in path.parents
        }
        dependencies |= conftests & known.keys()
        rule = "py_test"
    elif path.parts[0] != "tests" and _is_script(path):
        rule = "py_binary"
    else:
        rule = "py_library"
    attributes: Target = {"name": name, "srcs": [str(path)]}
    if rule == "py_test":
        # A test file run as a program would pass without running its tests.
        attributes["srcs"].append(TEST_MAIN)
        attributes["args"] = [str(path)]
        attributes["data"] = [DATA.get(str(path), "pyproject.toml")]
        attributes["main"] = TEST_MAIN
    if str(path) in ASSETS:
        assets = ROOT.glob(ASSETS[str(path)])
        attributes["data"] = [
            asset.relative_to(ROOT).as_posix() for asset in assets
        ]
    if dependencies:
        attributes["deps"] = [
            ":" + dependency.replace(".", "/") for dependency in dependencies
        ]
    return _format(rule, attributes)


def parse_targets(build: str) -> list[Target]:
    """The Python targets in the text of a BUILD file, their lists sorted.

    Attributes that say nothing about files, such as `size`, are left out.
    """
    targets = []
    for node in ast.walk(ast.parse(build)):
        if not (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id.startswith("py_")
        ):
            continue
        target = {"rule": node.func.id, "deps": []}
        for keyword in node.keywords:
            if keyword.arg in ("name", "srcs", "main", "args", "data", "deps"):
                value = ast.literal_eval(keyword.value)
                is_list = isinstance(value, list)
                target[keyword.arg] = sorted(value) if is_list else value
        targets.append(target)
    return targets


def _target_name(path: Path) -> str:
    whole_package = path.name == "__init__.py"
    named = path.parent if whole_package else path.with_suffix("")
    return named.as_posix()


def _is_script(path: Path) -> bool:
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in parse(path).body
    )


def _format(rule: str, attributes: Target) -> str:
    lines = [f"    {name} = {_value(v)}," for name, v in attributes.items()]
    return "\n".join([f"{rule}(", *lines, ")"])


def _value(value: str | Iterable[str]) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    items = [f'"{item}"' for item in sorted(value)]
    if len(items) == 1:
        return f"[{items[0]}]"
    return "\n".join(["[", *(f"        {item}," for item in items), "    ]"])
