"""Reads the BUILD files as Bazel would: their targets, with globs expanded.

Starlark is evaluated by `starlark-pyo3`, so that this needs no Bazel.

Synopsis:

    targets = build_files.read_targets(ROOT, ["keras_tracin"])
    targets["//keras_tracin/runs"].srcs  # {"keras_tracin/runs/lock.py", ...}
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import starlark

RULES = ("py_binary", "py_library", "py_test")
IGNORED = ("exports_files", "package")


@dataclasses.dataclass(frozen=True)
class Target:
    """A rule's call in a BUILD file.

    Attributes:
        rule: Name of the rule, such as "py_library".
        package: Directory of the BUILD file, relative to the root.
        srcs: Source files, relative to the root.
        data: Data files in the target's own package, relative to the root.
        deps: Labels, written out in full and as short as they can be.
        main_module: Dotted name of the module that a program runs.
    """

    rule: str
    package: str
    srcs: frozenset[str]
    data: frozenset[str]
    deps: frozenset[str]
    main_module: str | None


def label(package: str, name: str) -> str:
    """The shortest label: `//runs` where a package's name is the target's."""
    is_main = package.rpartition("/")[2] == name
    return f"//{package}" if is_main else f"//{package}:{name}"


def read_targets(root: Path, folders: Iterable[str]) -> dict[str, Target]:
    """The targets of the BUILD files in these folders of `root`, by label."""
    targets: dict[str, Target] = {}
    for folder in folders:
        for path in sorted((root / folder).rglob("BUILD")):
            targets.update(_evaluate(path, root))
    return targets


def _evaluate(path: Path, root: Path) -> dict[str, Target]:
    folder = path.parent
    package = folder.relative_to(root).as_posix()
    targets: dict[str, Target] = {}

    def files(names: list[str]) -> frozenset[str]:
        own = [name for name in names if not name.startswith(("//", ":"))]
        missing = [name for name in own if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{path} names {missing}, which are not there.")
        return frozenset(f"{package}/{name}" for name in own)

    def in_full(dependency: str) -> str:
        if dependency.startswith(":"):
            return label(package, dependency[1:])
        return dependency

    def declare(rule: str):
        def call(name, srcs=(), data=(), deps=(), main_module=None, **_):
            full = label(package, name)
            if full in targets:
                raise ValueError(f"{path} has two targets {name!r}.")
            labels = frozenset(map(in_full, deps))
            targets[full] = Target(
                rule, package, files(srcs), files(data), labels, main_module
            )

        return call

    rules = starlark.Module()
    for rule in RULES:
        rules.add_callable(rule, declare(rule))
    frozen = rules.freeze()
    module = starlark.Module()
    module.add_callable("glob", lambda *args, **kw: _glob(folder, *args, **kw))
    for name in IGNORED:
        module.add_callable(name, lambda *args, **kw: None)
    parsed = starlark.parse(str(path), path.read_text(encoding="utf-8"))
    loader = starlark.FileLoader(lambda name: frozen)
    starlark.eval(module, parsed, starlark.Globals.standard(), loader)
    return targets


def _glob(folder: Path, include: list[str], exclude=()) -> list[str]:
    """Bazel's `glob`: files only, and none of a folder with its own BUILD."""
    names = _matches(folder, include) - _matches(folder, exclude)
    if not names:
        raise ValueError(f"glob({include}) in {folder} matches nothing.")
    return sorted(names)


def _matches(folder: Path, patterns) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for pattern in patterns
        for path in folder.glob(pattern)
        if path.is_file() and _owner(path.parent) == folder
    }


def _owner(folder: Path) -> Path:
    """The nearest folder with a BUILD file."""
    while not (folder / "BUILD").is_file():
        folder = folder.parent
    return folder
