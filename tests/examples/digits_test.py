import re

import pytest

import keras_tracin as kt
from tests.examples import programs


@pytest.fixture(scope="module")
def run():
    """The program's `main`, small: two epochs, two queries, k = 2."""
    with programs.program("digits") as digits:
        small = ["--epochs=2", "--num_queries=2", "--k=2"]
        yield lambda output, *more: programs.run(digits, output, *small, *more)


@pytest.fixture(scope="module")
def output(run, tmp_path_factory):
    directory = tmp_path_factory.mktemp("digits")
    run(directory)
    return directory


def test_records_the_run_and_draws_two_pictures(output):
    assert len(kt.TrainingRun(output / "run")) == 2
    for name in ("proponents.png", "recall.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_second_run_replaces_the_first_and_prints_what_it_found(
    run, output, capsys
):
    run(output, "--flip_share=0.2")
    printed = capsys.readouterr().out
    assert "259 of 1297 training labels are wrong." in printed
    assert len(re.findall("^Test digit [0-9]", printed, re.M)) == 2
    for side, sign in (("proponents", r"\+"), ("opponents", "-")):
        score = rf"[0-9](?: \(is [0-9]\))? {sign}[\d.e+-]+"
        lines = re.findall(rf"^  {side} +{score}, {score}$", printed, re.M)
        assert len(lines) == 2
    for name in ("self-influence", "loss"):
        line = rf"by {name}((?: +[\d.]+%){{3}}) +([01]\.\d{{3}})$"
        recalls, auc = re.search(line, printed, re.M).groups()
        recalls = [float(recall.rstrip("%")) for recall in recalls.split()]
        assert recalls == sorted(recalls)
        assert float(auc) > 0.7
    assert len(kt.TrainingRun(output / "run")) == 2
