"""Rules about the repository itself: imports, version, what it bans."""

import ast
import graphlib
import re
import runpy

import pytest
import setuptools

import keras_tracin
from tests import source_tree
from tests.__main__ import QUICK
from tests.source_tree import ROOT

# An import goes to a room further up in this list or stays inside its own. A
# room is a folder or a module directly in keras_tracin/; "" is its __init__.py.
ROOMS = (
    "_version",
    "storage",
    "models",
    "data",
    "losses",
    "gradients",
    "projection",
    "runs",
    "results",
    "engine",
    "curvature",
    "methods",
    "trace",
    "index",
    "check",
    "evaluation",
    "labels",
    "selection",
    "plots",
    "report",
    "tensorboard",
    "callbacks",
    "beam",
    "scripts",
    "",
)
PICKLERS = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}
ABSOLUTE_PATH = re.compile(
    r"""(?:^|[\s"'`(=])/(?:home|mnt|opt|root|tmp|var|work|Users)/""", re.M
)


def is_in_package(module: str) -> bool:
    return module.split(".")[0] == "keras_tracin"


MODULES = source_tree.modules()
PACKAGE = [module for module in MODULES if is_in_package(module)]
IMPORTS = {
    module: source_tree.first_party_imports(module, MODULES)
    for module in MODULES
}


def room(module: str) -> str:
    """The room that a module of the package stands in."""
    return [*module.split("."), ""][1]


def nodes(module: str, *kinds: type[ast.AST]) -> list:
    """The nodes of these kinds in a module's syntax tree."""
    tree = source_tree.parse(MODULES[module])
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def imported_names(module: str) -> set[str]:
    """Dotted names of everything, also third-party, that a module imports."""
    names = set()
    for node in nodes(module, ast.Import, ast.ImportFrom):
        source = getattr(node, "module", None)
        for alias in node.names:
            names.add(f"{source}.{alias.name}" if source else alias.name)
    return names


def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict:
    """What setup.py passes to `setuptools.setup`."""
    received: dict = {}
    monkeypatch.setattr(setuptools, "setup", lambda **kw: received.update(kw))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    return received


def test_first_party_imports_name_modules_that_exist():
    imports = set().union(*IMPORTS.values())
    assert not imports - MODULES.keys()


def test_every_room_has_its_place():
    assert {room(module) for module in PACKAGE} == set(ROOMS)


def test_imports_go_to_earlier_rooms_or_stay_inside():
    upward = [
        f"{module} imports {name}"
        for module in PACKAGE
        for name in IMPORTS[module]
        if not is_in_package(name)
        or ROOMS.index(room(name)) > ROOMS.index(room(module))
    ]
    assert not upward, "\n".join(
        [
            *upward,
            "Move what both need to a room earlier in ROOMS of "
            "tests/repository_test.py.",
        ]
    )


def test_imports_make_no_circle():
    try:
        graphlib.TopologicalSorter(IMPORTS).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_only_distribution_names_tf_distribute():
    naming = []
    for module in PACKAGE:
        names = {node.attr for node in nodes(module, ast.Attribute)}
        for name in imported_names(module):
            names.update(name.split("."))
        if "distribute" in names:
            naming.append(module)
    assert naming == ["keras_tracin.engine.distribution"]


def test_package_never_unpickles():
    for module in PACKAGE:
        picklers = {name.split(".")[0] for name in imported_names(module)}
        assert not picklers & PICKLERS, module
        for call in nodes(module, ast.Call):
            options = {keyword.arg: keyword.value for keyword in call.keywords}
            allowed = options.get("allow_pickle")
            is_load = ast.unparse(call.func) in ("np.load", "numpy.load")
            if is_load or allowed is not None:
                place = f"{module}, line {call.lineno}"
                assert isinstance(allowed, ast.Constant), place
                assert allowed.value is False, place


def test_no_module_names_an_absolute_path():
    for module, path in MODULES.items():
        text = (ROOT / path).read_text(encoding="utf-8")
        assert ABSOLUTE_PATH.findall(text) == [], module


def test_every_public_name_has_a_docstring_of_its_own():
    for name in keras_tracin.__all__:
        public = getattr(keras_tracin, name)
        if isinstance(public, str):
            continue
        written = public.__doc__ or ""
        # A dataclass without a docstring is given its signature as one.
        assert written.strip(), f"{name} has no docstring"
        assert not written.startswith(f"{name}("), f"{name} has no docstring"


def test_version_is_the_same_everywhere(monkeypatch):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## \[(\d[^\]]*)\]", changelog, re.M)
    bazel = (ROOT / "MODULE.bazel").read_text(encoding="utf-8")
    bazel_module = re.search(r'^    version = "(.*)"', bazel, re.M)
    versions = {
        "package": keras_tracin.__version__,
        "setup.py": setup_arguments(monkeypatch)["version"],
        "CHANGELOG.md": latest and latest[1],
        "MODULE.bazel": bazel_module and bazel_module[1],
    }
    assert len(set(versions.values())) == 1, versions


def test_the_lowest_versions_are_those_that_setup_allows(monkeypatch):
    setup = setup_arguments(monkeypatch)
    required = [*setup["install_requires"], *setup["extras_require"]["lowest"]]
    allowed = dict(line.split(">=") for line in required)
    lowest = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8")
    pins = dict(re.findall(r"^([\w-]+)==(.*)$", lowest, re.M))
    assert {"keras", "tensorflow"} <= pins.keys()
    for package, version in pins.items():
        assert f"{version}.".startswith(f"{allowed[package]}."), package


def test_the_quick_tests_are_of_every_room():
    chosen = [ROOT / path for path in QUICK]
    missing = [str(path) for path in chosen if not path.exists()]
    assert not missing, f"QUICK of tests/__main__.py names {missing}."
    tested = {path.relative_to(ROOT / "tests").parts[0] for path in chosen}
    rooms = {room for room in ROOMS if (ROOT / "tests" / room).is_dir()}
    assert rooms - {""} <= tested


def test_setup_installs_the_whole_package_and_nothing_else(monkeypatch):
    directories = {MODULES[module].parent.parts for module in PACKAGE}
    packages = {".".join(parts) for parts in directories}
    installed = set(setup_arguments(monkeypatch)["packages"])
    assert installed == packages, "a package needs an __init__.py"


def test_files_beside_the_modules_are_installed(monkeypatch):
    packages = setup_arguments(monkeypatch)["package_data"]
    installed = set()
    for package, patterns in packages.items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns:
            found = set(folder.glob(pattern))
            assert found, f"{package} has no {pattern}"
            installed |= found
    assert installed == {
        path
        for path in (ROOT / "keras_tracin").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
        if path.name != "BUILD"
    }


def test_every_program_is_installed_under_its_name(monkeypatch):
    programs = {
        module.rpartition(".")[2]: module
        for module in PACKAGE
        if module.startswith("keras_tracin.scripts.")
        and any(node.name == "main" for node in nodes(module, ast.FunctionDef))
    }
    # Not the method `main` of the class that they are made of.
    programs = {n: m for n, m in programs.items() if not n.startswith("_")}
    installed = setup_arguments(monkeypatch)["entry_points"]["console_scripts"]
    assert sorted(installed) == sorted(
        f"keras_tracin-{name}={module}:main"
        for name, module in programs.items()
    )
    assert len(programs) == 7
