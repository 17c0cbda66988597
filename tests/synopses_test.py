"""Synopses are correct: all fit the code, and those that users copy run."""

import importlib
import shutil
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from mypy import api

import keras_tracin as kt
from keras_tracin import plots
from tests import synopses
from tests.points import CROSSENTROPY, examples

SYNOPSES = synopses.read_synopses()
LIBRARIES = {"keras": keras, "kt": kt, "np": np, "plots": plots, "tf": tf}


def test_every_synopsis_calls_what_there_is_as_it_is(tmp_path):
    """Names, attributes and arguments, by the types of the package."""
    assert len(SYNOPSES) > 100
    for module, code in SYNOPSES.items():
        path = tmp_path / f"{module.replace('.', '__')}.py"
        path.write_text(synopses.as_function(module, code), encoding="utf-8")
    options = (
        "--config-file=",
        "--check-untyped-defs",
        "--follow-imports=silent",
        "--ignore-missing-imports",
    )
    complaints, failure, code = api.run([*options, str(tmp_path)])
    assert code == 0, complaints + failure


# Those that users copy, with lines that they need to have run before.
FOR_USERS = {
    "check": "",
    "data.examples": "",
    "evaluation.leaving_out": "",
    "evaluation.mislabels": "y_true = train[1]",
    "evaluation.tail_patches": "",
    "index.index": "more_x, more_y = test",
    "labels.dynamics": "",
    "labels.finding": "",
    "labels.issues": "run = kt.TrainingRun('runs/digits')",
    "labels.measuring": "run = kt.TrainingRun('runs/digits')",
    "methods.influence": "",
    "methods.representer.faithfulness": "",
    "methods.representer.points": "",
    "methods.tracin": "",
    "methods.trak": """
        import shutil
        shutil.copytree("runs/digits", "runs/a")
        shutil.copytree("runs/digits", "runs/b")
        """,
    "methods.unrolled.influence": "import shutil; shutil.rmtree('runs/digits')",
    "plots": "",
    "plots.dynamics": "",
    "plots.images": "",
    "plots.maps": "",
    "plots.mislabels": "labels = train[1]",
    "plots.texts": "labels = train[1]",
    "plots.training": "trace = kt.trace_training(model, train, test, epochs=1)",
    "report": "",
    "results.attribution": "",
    "runs.save_options": "",
    "runs.selection": "from keras_tracin import TracIn, TracInCheckpoint",
    "selection.selecting": "",
    "selection.selection": "",
    "storage.files": "from pathlib import Path; path = Path('a.txt')",
    "tensorboard": "",
    "trace.plain": "import shutil; shutil.rmtree('runs/digits')",
    "trace.result": """
        kt.trace_training(model, train, test, epochs=1, directory="runs/traced")
        """,
    "trace.sketching": "queries = others = test",
    "trace.tracing": "",
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Values for the names that synopses are given: digits of four pixels."""

    def build():
        model = keras.Sequential(
            [
                keras.Input((2, 2, 1)),
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )
        model.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
        return model

    keras.utils.set_random_seed(0)
    model = build()
    train, test = (
        (x.reshape(-1, 2, 2, 1), y) for x, y in map(examples, (24, 6), (0, 1))
    )
    directory = tmp_path_factory.mktemp("recorded") / "digits"
    recorder = kt.TracInCheckpoint(directory)
    model.fit(*train, batch_size=8, epochs=6, verbose=0, callbacks=[recorder])
    run = kt.TrainingRun(directory)
    tracin = kt.TracIn(model, train, run)
    places = np.random.default_rng(0).uniform(-60, 60, size=[2, 24])
    return {
        **LIBRARIES,
        "build": build,
        "directory": directory,
        "is_mislabeled": np.arange(24) % 5 == 0,
        "latitude": places[0],
        "longitude": places[1],
        "model": model,
        "run": run,
        "scores": tracin.influence(test, verbose=0),
        "test": test,
        "test_texts": ["a text"] * 6,
        "top": tracin.top_k(test, 10, verbose=0),
        "tracin": tracin,
        "train": train,
        "train_texts": ["another text"] * 24,
        "x": train[0],
        "x_test": test[0],
        "x_train": train[0],
        "y": train[1],
        "y_test": test[1],
        "y_train": train[1],
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("module", FOR_USERS)
def test_synopsis_runs(module, given, tmp_path, monkeypatch):
    shutil.copytree(given["directory"], tmp_path / "runs" / "digits")
    monkeypatch.chdir(tmp_path)
    imported = importlib.import_module(f"keras_tracin.{module}")
    names = {**vars(imported), **given}
    weights = given["model"].get_weights()
    before, code = FOR_USERS[module], SYNOPSES[f"keras_tracin.{module}"]
    try:
        exec(textwrap.dedent(before), names)
        exec(compile(code, f"Synopsis of {module}", "exec"), names)
    finally:
        given["model"].set_weights(weights)
