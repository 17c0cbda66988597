"""The distributions hold what a user needs, and work without the source."""

import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile

import pytest
import yaml

import keras_tracin
from tests.source_tree import ROOT


def run(*command, cwd, **environment):
    """Runs Python in a folder, and returns what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A wheel, made of a source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    source = folder / "source"  # building leaves files there
    skipped = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        ROOT / "keras_tracin", source / "keras_tracin", ignore=skipped
    )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = "--no-isolation", "--outdir", str(folder), str(source)
    # `build` makes the wheel of what the sdist holds, so the sdist is whole.
    run("-m", "build", *options, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    (archive,) = folder.glob("*.tar.gz")
    return wheel, archive


def test_the_wheel_holds_the_package_and_nothing_else(built):
    wheel, source = built
    names = zipfile.ZipFile(wheel).namelist()
    version = keras_tracin.__version__
    info = f"keras_tracin-{version}.dist-info"
    assert {name.split("/")[0] for name in names} == {"keras_tracin", info}
    expected = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "py.typed", "assets/*")
        for path in (ROOT / "keras_tracin").rglob(pattern)
    }
    assert {name for name in names if info not in name} == expected
    assert any(name.endswith("LICENSE") for name in names)
    with tarfile.open(source) as archive:
        held = archive.getnames()
    assert f"keras_tracin-{version}/README.md" in held


def test_the_description_can_be_shown(built):
    run("-m", "twine", "check", "--strict", *map(str, built), cwd=ROOT)


def test_the_wheel_works_where_the_source_is_not(built, tmp_path):
    wheel, _ = built
    target = tmp_path / "installed"
    options = "--quiet", "--no-deps", "--no-index", "--target"
    run("-m", "pip", "install", *options, str(target), str(wheel), cwd=tmp_path)
    script = tmp_path / "user.py"
    script.write_text(
        textwrap.dedent(
            """
            import keras
            import numpy as np
            import keras_tracin as kt

            rng = np.random.default_rng(0)
            x, y = rng.normal(size=(40, 6, 6)), rng.integers(2, size=40)
            model = keras.Sequential(
                [keras.layers.Flatten(), keras.layers.Dense(2)]
            )
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile("sgd", loss)
            callback = kt.TracInCheckpoint("run")
            model.fit(x, y, epochs=2, verbose=0, callbacks=[callback])
            tracin = kt.TracIn(model, (x, y), "run")
            top = tracin.top_k((x[:3], y[:3]), k=2, verbose=0)
            kt.report.write_html("report.html", train=(x, y), top_k=top)
            print(kt.__file__)
            """
        )
    )
    printed = run(str(script), cwd=tmp_path, PYTHONPATH=str(target))
    assert printed.split()[-1].startswith(str(target))
    assert (tmp_path / "report.html").stat().st_size > 50_000
    helped = run(
        *("-m", "keras_tracin.scripts.score", "--help"),
        cwd=tmp_path,
        PYTHONPATH=str(target),
    )
    assert "--run" in helped


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    citation = yaml.safe_load(text)
    assert citation["version"] == keras_tracin.__version__
    assert citation["license"] == "Apache-2.0"
