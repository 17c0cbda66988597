import importlib
import re

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.labels import LabelIssues
from keras_tracin.scripts import label_issues
from keras_tracin.scripts._output import Output
from tests.error_rows import row
from tests.report.pages import embedded
from tests.scripts.helpers import TASK, table


def test_ranking_is_that_of_the_library(work):
    printed = work.run(label_issues, TASK)
    said = work.run(label_issues, TASK, "--output=issues.npz")
    task = importlib.import_module("digits_task")
    expected = kt.find_label_issues(
        task.model(), task.train(), "runs/digits", verbose=0
    )
    saved = kt.LabelIssues.load("issues.npz")
    assert repr(saved) == repr(expected)
    number = expected.num_issues
    assert f"of which {number} (" in said
    assert said.endswith("They are in issues.npz.\n")

    rows = table(printed)
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    assert columns["rank"] == list(map(str, range(1, 1201)))
    assert columns["is_issue"] == ["1"] * number + ["0"] * (1200 - number)
    for name, values in (
        ("train_id", expected.ids),
        ("score", expected.scores),
        ("given_label", expected.given_labels),
        ("suggested_label", expected.suggested_labels),
        ("suggested_probability", expected.suggested_probabilities),
    ):
        found = np.array(columns[name], dtype=values.dtype)
        np.testing.assert_allclose(found, values, rtol=1e-5, err_msg=name)


def test_scores_number_and_checkpoints_can_be_chosen(work):
    said = work.run(
        label_issues, TASK, "--epochs=1,2", "--method=aum,mean_loss",
        "--number=17", "--report=out/review.html", "--max_suspects=20",
    )  # fmt: skip
    assert "of which 17 (1.4%)" in said
    assert "ranked by 'aum + mean_loss' of 2 checkpoints" in said
    assert said.endswith("The page is out/review.html.\n")
    page = embedded(work.directory / "out/review.html")
    suspects = page["suspects"]
    assert (suspects["num_issues"], suspects["total"]) == (17, 1200)
    assert len(suspects["suggested"]) == 20
    assert page["classes"][7] == ["7", "the digit 7"]


def test_folds_are_trained_as_the_task_says_and_kept(
    work, monkeypatch, tmp_path
):
    (tmp_path / "folds_task.py").write_text(
        "from digits_task import *\n"
        "trained = []\n"
        "def train():\n"
        "    return x[:60], y[:60]\n"
        "def fit(model, train, callbacks):\n"
        "    trained.append(len(train[0]))\n"
        "    model.fit(*train, verbose=0, callbacks=callbacks)\n"
        "run = None\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    folds = ("--task=folds_task", "--folds=2", "--directory=folds")
    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", _interrupt)
        assert label_issues.main([*folds]) == 130
    rows = table(work.run(label_issues, *folds))
    assert len(rows) == 60
    assert importlib.import_module("folds_task").trained == [30, 30], "once"


def _interrupt(*_):
    raise KeyboardInterrupt


def test_what_an_example_has_several_of_is_one_column(work):
    issues = LabelIssues(
        *(np.array(["a", "b"]), np.array([2.0, 1.0]), None, "loss"),
        given_labels=np.array([[1, 0], [0, 0]]),
        suggested_labels=np.array([[1, 1], [0, 0]]),
        suggested_probabilities=np.array([[0.5, 0.75], [1, 1]]),
    )
    Output(work.directory / "several.csv").write(issues)
    assert (work.directory / "several.csv").read_text() == (
        "rank,train_id,score,given_label,suggested_label,"
        "suggested_probability\n"
        "1,a,2,1 0,1 1,0.5 0.75\n"
        "2,b,1,0 0,0 0,1 1\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--directory=d"], row("unused-flag", "--directory is for --folds")),
        (["--method=entropy"], row("issues-method")),
        (["--number=many"], row("issues-number")),
        (["--number=5000"], row("issues-number")),
        (["--folds=1"], row("folds")),
        (["--report=page.csv"], "--report should end in .html"),
        (["--output=page.html"], "--output should end in .npz or .csv"),
        (["--report=digits_task.py/a.html"], "--report.*cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    work, arguments, message
):
    line = work.refused(label_issues, TASK, "--quiet", *arguments)
    assert re.search(message, line), line
