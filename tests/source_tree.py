"""The repository's Python files and what they import.

A module's name is dotted, `keras_tracin.gradients.capture`; a package's is that
of its directory.
"""

import ast
import importlib.util
from pathlib import Path

# Resolved: under Bazel the files are links into the checkout, which has more.
ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = ("benchmarks", "examples", "keras_tracin", "tests")


def modules() -> dict[str, Path]:
    """Every module of the repository with its path relative to the root."""
    paths = sorted(
        path.relative_to(ROOT)
        for directory in TOP_LEVEL
        for path in (ROOT / directory).rglob("*.py")
    )
    return {_module_name(path): path for path in paths}


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
    imports: set[str] = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package)
            names = {f"{base}.{alias.name}" for alias in node.names}
            submodules = names & known.keys()
            imports.update(submodules)
            if submodules != names:
                imports.add(base)
    imports.discard(module)
    return {name for name in imports if name.split(".")[0] in TOP_LEVEL}


def is_program(path: Path) -> bool:
    """Whether the file does something when it is run."""
    return any(
        isinstance(node, ast.If)
        and ast.unparse(node.test) == "__name__ == '__main__'"
        for node in parse(path).body
    )


def _module_name(path: Path) -> str:
    is_package = path.name == "__init__.py"
    named = path.parent if is_package else path.with_suffix("")
    return named.as_posix().replace("/", ".")
