import re

import pytest

import keras_tracin as kt
from tests.examples.programs import DATA, assert_pictures, needs, run_program

pytestmark = needs("tfds/mnist")


def test_wrong_labels_are_found_compared_and_put_right(tmp_path, capsys):
    printed = run_program(
        "find_mislabeled",
        tmp_path,
        capsys,
        f"--data_dir={DATA / 'tfds'}",
        "--num_train=1500",
        "--epochs=3",
        "--checkpoints=2",
        "--corruption=uniform",
        "--folds=2",
        "--fix=right,removed",
    )
    (count,) = re.findall(r"== uniform: (\d+) of 1,350 labels", printed)
    flagged = re.findall(
        r"^([\d,]+) of 1,350 labels are flagged:\n(?:- .+\n)+"
        r"(\d+) of them are wrong: precision ([\d.]+)%, recall ([\d.]+)%$",
        printed,
        re.M,
    )
    assert len(flagged) == 2  # by the run, and out of fold as well
    for number, wrong, precision, recall in flagged:
        assert int(number) == pytest.approx(int(count), rel=0.5)
        assert float(precision) == pytest.approx(
            100 * int(wrong) / int(number), abs=0.051
        )
        assert float(recall) == pytest.approx(
            100 * int(wrong) / int(count), abs=0.051
        )
        assert float(recall) > 60
    assert "out of fold" in printed

    rows = re.findall(
        r"^  (\w.*?) +([\d.]+)% +([\d.]+)% +([\d.]+)%   (0\.\d{3})$",
        printed,
        re.M,
    )
    names = ["find_label_issues", "find_label_issues, folds"]
    names += ["Loss, last epoch", "TracIn", "TracIn, last layer"]
    assert [row[0] for row in rows] == names
    for _, *recalls, auc in rows:
        recalls = [float(recall) for recall in recalls]
        assert recalls == sorted(recalls)
        assert float(auc) > 0.75

    suspects = re.findall(
        r"^  image +\d+, labelled (\d) \(is (\d)\): images labelled (.+)$",
        printed,
        re.M,
    )
    assert len(suspects) == 5
    # The worst are wrong, and contradict images of their class.
    assert sum(label != truth for label, truth, _ in suspects) >= 4
    assert sum(truth in others for _, truth, others in suspects) >= 4
    for way in ("right", "removed"):
        (accuracy,) = re.findall(
            rf"^Accuracy with flagged labels {way}: ([\d.]+)%$", printed, re.M
        )
        assert 60 < float(accuracy) < 100
    assert_pictures(tmp_path, "recall_uniform.png", "map_uniform.png")
    assert "<html" in (tmp_path / "review_uniform.html").read_text("utf-8")
    assert len(kt.TrainingRun(tmp_path / "uniform_removed")) == 3
