"""What `import keras_tracin` loads, and what it leaves for later."""

import json
import subprocess
import sys

import pytest

import keras_tracin as kt
from tests.source_tree import ROOT

# Packages that many users do not have, or whose import takes long.
OTHERS = (
    "apache_beam",
    "faiss",
    "keras_hub",
    "matplotlib",
    "pandas",
    "PIL",
    "sklearn",
    "tensorboard",
    "tensorflow_datasets",
)
# Parts of SciPy that take a second. `import scipy` loads each when it is used.
SLOW_PARTS = ("scipy.stats", "scipy.optimize", "scipy.special")
LATER = (
    "evaluation",
    "index",
    "labels",
    "plots",
    "report",
    "scripts",
    "selection",
    "tensorboard",
    "trace",
)
LOADED = """
import json, sys
import keras
for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
    del sys.modules[name]  # which Keras loads with scikit-learn
before = set(sys.modules)
import keras_tracin
after = set(sys.modules)
names = dir(keras_tracin)
print(json.dumps([sorted(after - before), names, sorted(set(sys.modules))]))
"""


@pytest.fixture(scope="module")
def loaded():
    """What the import adds to Keras's, what `dir` names, what that adds."""
    child = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(child.stdout.splitlines()[-1])


def test_import_leaves_other_packages_alone(loaded):
    added, _, _ = loaded
    assert not {name.partition(".")[0] for name in added} & set(OTHERS)


def test_import_leaves_parts_of_scipy_alone(loaded):
    added, _, _ = loaded
    assert not set(added) & set(SLOW_PARTS)


def test_import_leaves_what_a_first_answer_does_not_need(loaded):
    added, _, _ = loaded
    parts = [name.split(".") for name in added if name.startswith("keras_tr")]
    rooms = {part[1] for part in parts if len(part) > 1}
    assert {"callbacks", "check", "methods", "results"} <= rooms
    assert not rooms & set(LATER)


def test_dir_names_what_is_left_for_later_without_loading_it(loaded):
    _, names, modules = loaded
    assert set(kt.__all__) <= set(names)
    assert not {f"keras_tracin.{room}" for room in LATER} & set(modules)


@pytest.mark.parametrize("name", kt.__all__)
def test_every_public_name_is_found(name):
    assert getattr(kt, name) is not None


def test_a_wrong_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"no attribute 'TracOut'"):
        kt.TracOut  # noqa: B018


def test_rooms_are_attributes_as_after_an_import():
    for room in ("evaluation", "index", "labels", "selection", "trace"):
        assert getattr(kt, room).__name__ == f"keras_tracin.{room}"


def test_check_is_the_function():
    import keras_tracin.check as _  # noqa: F401

    assert callable(kt.check)
