"""The BUILD files: every file in one target, and no dependency too many."""

from collections import Counter

import pytest

from tests import build_files, source_tree
from tests.source_tree import ROOT, TOP_LEVEL

MODULES = source_tree.modules()


@pytest.fixture(scope="module")
def targets():
    return build_files.read_targets(ROOT, TOP_LEVEL)


@pytest.fixture(scope="module")
def owners(targets):
    """The label of the target that has a file, by the file."""
    return {
        source: label
        for label, target in targets.items()
        for source in target.srcs
    }


def test_every_file_is_in_one_target(targets):
    counts = Counter(
        name for target in targets.values() for name in target.srcs
    )
    counts.update(name for target in targets.values() for name in target.data)
    expected = {path.as_posix() for path in MODULES.values()}
    expected |= {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "keras_tracin").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
        if path.name != "BUILD"
    }
    missing = expected - counts.keys()
    assert not missing, f"No BUILD file has {sorted(missing)}."
    repeated = [name for name, count in counts.items() if count > 1]
    assert not repeated, f"In more than one target: {repeated}."


def test_targets_depend_on_what_their_files_import(targets, owners):
    faults = []
    for package in sorted({target.package for target in targets.values()}):
        own = {k: t for k, t in targets.items() if t.package == package}
        needed_here = set()
        for label, target in own.items():
            needed = needs(target, owners)
            needed_here |= needed
            reached = set(target.deps)
            for dependency in target.deps & own.keys():
                reached |= own[dependency].deps
            if lacking := needed - reached - {label}:
                faults.append(f"{label} lacks the deps {sorted(lacking)}")
        named = set().union(*(target.deps for target in own.values()))
        if idle := named - needed_here - own.keys():
            faults.append(f"{package}/BUILD has idle deps {sorted(idle)}")
    assert not faults, "\n".join(faults)


def needs(target, owners):
    """Labels of what the target's files import.

    What two files of tests share belongs in a module beside them: a test that
    imports another's file has nowhere to take it from.
    """
    names = [name for name, path in MODULES.items() if str(path) in target.srcs]
    return {
        owners[MODULES[imported].as_posix()]
        for name in names
        for imported in source_tree.first_party_imports(name, MODULES)
    }


def test_dependencies_name_targets_that_exist(targets):
    named = set().union(*(target.deps for target in targets.values()))
    assert not named - targets.keys()


def test_every_program_can_be_run(targets):
    runnable = {
        target.main_module
        for target in targets.values()
        if target.rule == "py_binary"
    }
    programs = {
        name
        for name, path in MODULES.items()
        if source_tree.is_program(path)
        and not path.name.startswith("_")
        and path.parts[0] != "tests"
    }
    assert runnable == programs


def test_every_test_file_is_run(targets):
    tests = {
        name
        for target in targets.values()
        if target.rule == "py_test"
        for name in target.srcs
    }
    files = (path.as_posix() for path in MODULES.values())
    assert tests == {path for path in files if path.endswith("_test.py")}
