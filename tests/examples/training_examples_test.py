"""The examples of trained digits, run small, as programs of their own.

Each has flags of the same names, so one process cannot import them all.
"""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import keras_tracin as kt

ROOT = pathlib.Path(__file__).parents[2]
DATA = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", "../shared/data"))

pytestmark = pytest.mark.skipif(
    not (DATA / "tfds" / "mnist").is_dir(),
    reason=f"MNIST is not in {DATA / 'tfds'}; set KERAS_TRACIN_DATA",
)


def run(program, output, *arguments):
    """What the program prints."""
    command = [
        sys.executable,
        f"examples/{program}.py",
        f"--output_dir={output}",
        f"--data_dir={DATA / 'tfds'}",
        *arguments,
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_pictures(output, *names):
    for name in names:
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_training_trace_prints_the_balance_and_draws_figure_7(tmp_path):
    printed = run(
        "training_trace",
        tmp_path,
        "--num_train=64",
        "--num_queries=5",
        "--epochs=1",
    )
    assert "2 steps, 5 test digits." in printed
    numbers = {
        name: float(re.search(rf"{name} +([+-][\d.]+)$", printed, re.M)[1])
        for name in ("went down by", "training digits", "accounts for")
    }
    assert numbers["went down by"] == numbers["training digits"] > 0
    assert numbers["accounts for"] == 0
    assert len(re.findall(r"^  (?:prop|opp)onents ", printed, re.M)) == 2
    assert len(kt.TrainingTrace.load(tmp_path / "trace").steps) == 2
    assert_pictures(tmp_path, "loss_changes.png")


def test_checkpoint_selection_compares_three_choices_and_draws(tmp_path):
    printed = run(
        "checkpoint_selection",
        tmp_path,
        "--num_train=200",
        "--num_queries=5",
        "--epochs=5",
        "--count=2",
    )
    assert "20 of 200 training labels are wrong." in printed
    assert len(re.findall("(?:kept|left): ", printed)) == 5
    for name in ("selected", "evenly spaced", "the last"):
        line = rf"^{name} +([\d.]+) +(-?[\d.]+)   \[(\d), (\d)\]$"
        auc, correlation, *epochs = re.search(line, printed, re.M).groups()
        assert 0.5 < float(auc) <= 1
        assert 0 < float(correlation) <= 1
        if name == "the last":
            assert epochs == ["4", "5"]
    assert_pictures(tmp_path, "loss_curve.png", "mislabeled_by_class.png")
