import importlib
import re

import keras_tracin as kt
from keras_tracin.scripts import report
from tests.error_rows import row
from tests.scripts.helpers import FEW, TASK


def test_page_has_the_queries_and_suspects_of_the_library(work, monkeypatch):
    given = {}

    def writes(path, **arguments):
        given.update(arguments)
        return kt.report.write_html(path, **arguments)

    monkeypatch.setattr(report, "write_html", writes)
    said = work.run(
        report, TASK, FEW, "--epochs=2,5", "--k=3", "--max_suspects=20",
        "--title=Two <digits>", "--output=out/page.html",
    )  # fmt: skip
    assert said.endswith("The page is out/page.html.\n")
    page = (work.directory / "out/page.html").read_text(encoding="utf-8")
    assert "Two &lt;digits&gt;" in page
    assert "the digit 7" in page

    task = importlib.import_module("digits_task")
    run = kt.TrainingRun("runs/digits").select([1, 4])
    tracin = kt.TracIn(task.model(), task.train(), run)
    assert given["top_k"].query_ids.tolist() == [3, 17]
    assert (
        given["self_influence"].ranking().ids[:20].tolist()
        == tracin.self_influence().ranking().ids[:20].tolist()
    )
    # The predictions are those at the end of the run: most are right.
    found = given["train_predictions"]
    labels = task.train()[1]
    right = [found[i].argmax() == label for i, label in enumerate(labels)]
    assert sum(right) > 0.8 * len(labels)


def test_page_shows_examples_as_the_task_wants_them_shown(
    work, monkeypatch, tmp_path
):
    (tmp_path / "shown_task.py").write_text(
        "from digits_task import *\n"
        "import numpy as np\n"
        "def shown_train():\n"
        "    names = [f'digit number {i}' for i in range(1200)]\n"
        "    return np.array(names), train()[1]\n"
        "test = None\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    work.run(
        report, "--task=shown_task", "--epochs=2,5", "--output=out/texts.html",
        "--method=representer", "--max_suspects=1200",
    )  # fmt: skip
    page = (work.directory / "out/texts.html").read_text(encoding="utf-8")
    assert "digit number 1199" in page


def test_page_that_is_there_is_kept(work):
    kept = work.directory / "kept.html"
    kept.write_text("mine")
    line = work.refused(report, TASK, "--output=kept.html")
    assert re.search(row("output-exists"), line)
    line = work.refused(report, TASK, "--output=page.csv")
    assert "should end in .html" in line
    assert kept.read_text() == "mine"
