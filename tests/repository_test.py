"""Rules about the repository itself: imports, BUILD, version, what it bans."""

import ast
import graphlib
import re
import runpy
from collections import Counter

import pytest
import setuptools

import keras_tracin
from tests import source_tree
from tests.source_tree import ROOT

# A module imports only from modules listed above it. "x.*" is the package x
# with all its modules, which may import each other but not in a circle.
IMPORT_ORDER = (
    "_version",
    "_files",
    "exclusive",
    "loops",
    "descriptions",
    "sharing",
    "distribution",
    "runs.*",
    "example_ids",
    "datasets",
    "labels",
    "loss_terms",
    "losses",
    "output_kinds",
    "query_losses",
    "model_outputs",
    "gradients.compiling",
    "gradients.lookup",
    "gradients.nest",
    "gradients.factors.*",
    "gradients.flat",
    "gradients.precision",
    "gradients.rules.*",
    "gradients.refusals",
    "gradients.sites",
    "gradients.steadiness",
    "gradients.interaction",
    "gradients.paths",
    "gradients.dry_run",
    "gradients.plain",
    "gradients.reasons",
    "gradients.placement",
    "gradients.whole_loss",
    "gradients.capture",
    "gradients.updated",
    "projection.*",
    "gradients.footprint",
    "gradients.functions",
    "gradients",
    "preconditioner",
    "callbacks",
    "attribution",
    "progress",
    "sweep",
    "measures",
    "fingerprint",
    "underflow",
    "parts",
    "collecting",
    "diagnosis",
    "preprocessing",
    "first_look",
    "spot_checks",
    "scoring",
    "forecast",
    "curvature.operators",
    "curvature.examples",
    "curvature.penalty",
    "curvature.mean_loss",
    "curvature.objective",
    "curvature.spectrum",
    "curvature.solvers.*",
    "curvature.sketch",
    "curvature.kronecker",
    "curvature.pseudo_gradients",
    "curvature.ekfac",
    "curvature",
    "rates",
    "training_notes",
    "tracin",
    "influence",
    "representer.*",
    "trace.*",
    "unrolled.*",
    "trak",
    "index.*",
    "beam",
    "check.*",
    "evaluation.*",
    "plots.*",
    "tensorboard",
    "report.*",
    "scripts.*",
    "",  # keras_tracin/__init__.py
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

each_module = pytest.mark.parametrize("module", MODULES)
each_package_module = pytest.mark.parametrize("module", PACKAGE)


def rank(module: str) -> int:
    """Position of a module of the package in IMPORT_ORDER."""
    name = module.removeprefix("keras_tracin").removeprefix(".")
    for position, entry in enumerate(IMPORT_ORDER):
        package = entry.removesuffix(".*")
        inside = entry != package and name.startswith(f"{package}.")
        if name == package or inside:
            return position
    return pytest.fail(
        f"{module} is not in IMPORT_ORDER of tests/repository_test.py. Add it "
        "below the modules that it imports and above those that import it."
    )


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


@each_module
def test_first_party_imports_name_modules_that_exist(module):
    missing = IMPORTS[module] - MODULES.keys()
    assert not missing, f"{module} imports {missing}: no such file."


@each_package_module
def test_module_imports_only_from_modules_listed_above_it(module):
    own_rank = rank(module)
    inside = {name for name in IMPORTS[module] if is_in_package(name)}
    outside = IMPORTS[module] - inside
    assert not outside, f"{module} imports {outside} from outside the package."
    below = {name for name in inside if rank(name) > own_rank}
    assert not below, (
        f"{module} imports {below}, listed below it in IMPORT_ORDER of "
        "tests/repository_test.py. Imports point one way: move what both need "
        "to a module above them."
    )


def test_imports_make_no_circle():
    try:
        graphlib.TopologicalSorter(IMPORTS).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" is imported by ".join(error.args[1]))


def test_build_has_one_true_target_for_each_file():
    build = (ROOT / "BUILD").read_text(encoding="utf-8")
    actual = source_tree.parse_targets(build)
    texts = [source_tree.expected_target(name, MODULES) for name in MODULES]
    expected = [source_tree.parse_targets(text)[0] for text in texts]

    wrong = [
        text
        for text, target in zip(texts, expected, strict=True)
        if actual.count(target) != 1
    ]
    surplus = Counter(target["name"] for target in actual)
    surplus.subtract(target["name"] for target in expected)
    unwanted = sorted(+surplus)
    advice = []
    if wrong:
        advice += ["BUILD should have these targets, once each:", *wrong]
    if unwanted:
        advice += [f"BUILD has one too many of the targets {unwanted}."]
    if advice:
        # Without a trace, so that the targets can be copied as they stand.
        pytest.fail("\n\n".join(advice), pytrace=False)


@each_package_module
def test_only_distribution_names_tf_distribute(module):
    attributes = {node.attr for node in nodes(module, ast.Attribute)}
    imports = {
        part for name in imported_names(module) for part in name.split(".")
    }
    named = "distribute" in attributes | imports
    assert not named or module == "keras_tracin.engine.distribution"


@each_package_module
def test_package_never_unpickles(module):
    picklers = {name.split(".")[0] for name in imported_names(module)}
    assert not picklers & PICKLERS
    for call in nodes(module, ast.Call):
        options = {keyword.arg: keyword.value for keyword in call.keywords}
        allowed = options.get("allow_pickle")
        is_load = ast.unparse(call.func) in ("np.load", "numpy.load")
        if is_load or allowed is not None:
            assert isinstance(allowed, ast.Constant), f"line {call.lineno}"
            assert allowed.value is False, f"line {call.lineno}"


@each_module
def test_module_names_no_absolute_path(module):
    text = (ROOT / MODULES[module]).read_text(encoding="utf-8")
    assert ABSOLUTE_PATH.findall(text) == []


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


def test_setup_installs_the_whole_package_and_nothing_else(monkeypatch):
    directories = {MODULES[module].parent.parts for module in PACKAGE}
    packages = {".".join(parts) for parts in directories}
    installed = set(setup_arguments(monkeypatch)["packages"])
    assert installed == packages, "a package needs an __init__.py"


def test_files_beside_the_modules_are_installed(monkeypatch):
    packages = setup_arguments(monkeypatch)["package_data"]
    for package, patterns in packages.items():
        folder = ROOT / package.replace(".", "/")
        installed = {path for each in patterns for path in folder.glob(each)}
        others = {
            path
            for path in folder.rglob("*")
            if path.is_file() and path.suffix not in (".py", ".pyc")
        }
        assert others, f"{package} has no files beside its modules"
        assert others == installed


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
    assert len(programs) == 6
