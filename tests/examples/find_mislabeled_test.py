import re

import pytest

from tests.examples.programs import DATA, assert_pictures, needs, run_program

pytestmark = needs("tfds/mnist")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("find_mislabeled")


def test_rankings_are_compared_and_findings_put_right(output, capsys):
    printed = run_program(
        "find_mislabeled",
        output,
        capsys,
        f"--data_dir={DATA / 'tfds'}",
        "--num_train=1500",
        "--epochs=3",
        "--checkpoints=2",
        "--corruption=uniform",
        "--method=tracin,representer",
        "--refit=Loss",
        "--by_checkpoint",
    )
    assert "== uniform: 135 of 1,350 labels are wrong" in printed
    rows = re.findall(
        r"^  (\w.*?) +([\d.]+)% +([\d.]+)% +([\d.]+)%   (0\.\d{3})$",
        printed,
        re.M,
    )
    names = ["TracIn", "Representer points", "TracIn, last layer", "Loss"]
    assert [row[0] for row in rows] == names
    for _, *recalls, auc in rows:
        recalls = [float(recall) for recall in recalls]
        assert recalls == sorted(recalls)
        assert float(auc) > 0.75
    # Corrected labels are those that the ranking found in the top tenth.
    (fixed,) = re.findall(
        r"with (\d+) wrong labels corrected that Loss", printed
    )
    assert int(fixed) == round(1.35 * float(rows[-1][2]))
    epochs = re.findall(r"^ +\d+ +[\d.]+ +[\d.]+ +(0\.\d+)$", printed, re.M)
    assert len(epochs) == 3
    assert_pictures(output, "recall_uniform.png", "scores_uniform.png")
