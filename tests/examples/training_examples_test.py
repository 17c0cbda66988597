"""The examples of how digits are learnt, run small."""

import re

import keras_tracin as kt
from tests.examples.programs import DATA, assert_pictures, needs, run_program

IMAGES = f"--data_dir={DATA / 'tfds'}"

pytestmark = needs("tfds/mnist")


def test_training_trace_prints_the_balance_and_draws_figure_7(tmp_path, capsys):
    printed = run_program(
        "training_trace",
        tmp_path,
        capsys,
        IMAGES,
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


def test_checkpoint_selection_compares_three_choices_and_draws(
    tmp_path, capsys
):
    printed = run_program(
        "checkpoint_selection",
        tmp_path,
        capsys,
        IMAGES,
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
