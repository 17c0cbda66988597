import re

import numpy as np

import keras_tracin as kt
from keras_tracin.scripts import index, query, score
from tests.error_rows import row
from tests.scripts.helpers import FEW, TASK, table

BUILD = (TASK, "--index=index", "--epochs=2,5", "--dim=256")
ASK = (TASK, "--index=index", FEW, "--k=3")


def test_index_is_built_once_and_answers_as_exact_scores_do(work):
    said = work.run(index, *BUILD)
    assert "1,200 rows of 2 × 256 float32" in said
    assert work.run(index, *BUILD) == said  # it goes on from the end

    estimated = table(work.run(query, *ASK))
    assert [row["query_id"] for row in estimated] == ["3"] * 6 + ["17"] * 6
    exact = work.run(score, TASK, FEW, "--epochs=2,5", "--k=3")
    reranked = work.run(
        query, *ASK, "--rerank=200", "--epochs=2,5",
        "--output=answers.csv",
    )  # fmt: skip
    assert "Answers to 2 queries are in answers.csv" in reranked
    found = table((work.directory / "answers.csv").read_text())
    expected = table(exact)
    assert found[0].keys() == expected[0].keys()
    assert "train_name" not in estimated[0], "training data are not read"
    assert [r["train_id"] for r in found] == [r["train_id"] for r in expected]
    scores = [[float(r["score"]) for r in rows] for rows in (found, expected)]
    np.testing.assert_allclose(*scores, rtol=1e-4)

    line = work.refused(index, *BUILD[:-1], "--dim=128")
    assert re.search(row("index-settings", "another projection"), line)
    work.run(index, *BUILD[:-1], "--dim=128", "--overwrite", "--quiet")
    assert "2 × 128" in repr(kt.InfluenceIndex("index", _model()))


def _model():
    import digits_task

    return digits_task.model()


def test_index_of_influence_functions_is_asked_at_the_same_weights(work):
    common = (TASK, "--index=index_influence")
    work.run(
        index, *common, "--method=influence", "--solver=sketch", "--dim=16",
        "--damping=1", "--layers=logits", "--quiet",
    )  # fmt: skip
    rows = table(work.run(query, *common, FEW, "--k=2"))
    assert [row["query_id"] for row in rows] == ["3"] * 4 + ["17"] * 4


def test_what_is_no_index_is_refused_and_stays(work):
    line = work.refused(index, TASK, "--index=runs", "--overwrite")
    assert re.search(row("other-files", "'digits' for one"), line)
    line = work.refused(index, TASK, "--index=digits_task.py")
    assert "is a file" in line
    line = work.refused(index, TASK, "--index=new", "--method=representer")
    assert "There is no index of --method=representer" in line
    line = work.refused(query, TASK, "--index=runs")
    assert re.search(row("no-index"), line)
    line = work.refused(query, *ASK, "--rerank=2")
    expected = row("rerank", "--rerank should", "Received: 2 with --k=3")
    assert re.search(expected, line)
