import importlib
import re

import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import run_weights
from keras_tracin.scripts import score, self_influence
from keras_tracin.scripts._output import Output
from tests.error_rows import row
from tests.scripts.helpers import FEW, TASK, table


def parts(work):
    """The task's model, training data and the queries of `FEW`."""
    task = importlib.import_module("digits_task")
    x, y = task.test()
    few = kt.with_ids((x[[3, 17]], y[[3, 17]]), [3, 17]).batch(2)
    return task.model(), task.train(), few


def assert_close(found, expected):
    """Equal but for rounding: one is compiled for other queries' number."""
    size = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-5 * size)


def test_scores_are_those_of_the_library(work):
    said = work.run(score, TASK, FEW, "--output=out/all.npz")
    assert "Scores of 1,200 training examples for 2 queries" in said
    found = kt.Attribution.load("out/all.npz")
    model, train, few = parts(work)
    expected = kt.TracIn(model, train, "runs/digits").influence(few)
    assert_close(found.scores, expected.scores)
    np.testing.assert_array_equal(found.query_ids, [3, 17])
    np.testing.assert_array_equal(found.train_ids, expected.train_ids)

    refused = work.refused(score, TASK, FEW, "--output=out/all.npz")
    assert re.search(row("output-exists"), refused)
    work.run(
        score, TASK, FEW, "--epochs=2,5", "--weights=sum",
        "--layers=logits", "--output=out/all.npz", "--overwrite", "--quiet",
    )  # fmt: skip
    run = kt.TrainingRun("runs/digits").select([1, 4])
    tracin = kt.TracIn(model, train, run, weights="sum", layers=["logits"])
    assert_close(
        kt.Attribution.load("out/all.npz").scores,
        tracin.influence(few).scores,
    )


def test_table_has_the_strongest_of_each_side_with_their_scores(work):
    # Two checkpoints, chosen by the loss.
    flags = (TASK, FEW, "--checkpoints=2")
    printed = work.run(score, *flags, "--k=3")
    rows = table(printed)
    model, train, few = parts(work)
    run = kt.select_checkpoints(kt.TrainingRun("runs/digits"), 2, verbose=0)
    scores = kt.TracIn(model, train, run).influence(few)
    columns = {"proponent": np.sort(-scores.scores), "opponent": None}
    columns["opponent"] = -np.sort(scores.scores)
    for side, best in columns.items():
        got = [r for r in rows if r["side"] == side]
        assert [r["query_id"] for r in got] == ["3"] * 3 + ["17"] * 3
        assert [r["rank"] for r in got] == ["1", "2", "3"] * 2
        values = np.array([float(r["score"]) for r in got]).reshape(2, 3)
        assert_close(values, -best[:, :3])
        place = np.array([int(r["train_id"]) for r in got]).reshape(2, 3)
        assert_close(values, np.take_along_axis(scores.scores, place, axis=1))

    work.run(score, *flags, "--k=3", "--output=top.npz", "--overwrite")
    saved = kt.TopK.load("top.npz")
    assert saved.proponents.ids.ravel().tolist() == [
        int(r["train_id"]) for r in rows if r["side"] == "proponent"
    ]


def test_influence_functions_and_representer_points_are_at_the_last_checkpoint(
    work,
):
    model, train, few = parts(work)
    common = (TASK, FEW, "--output=out/other.npz", "--overwrite")
    with run_weights(model) as load:
        load(kt.TrainingRun("runs/digits")[-1])
        work.run(
            score, *common, "--method=influence", "--damping=1",
            "--curvature=ekfac", "--layers=logits",
        )  # fmt: skip
        found = kt.Attribution.load("out/other.npz").scores
        expected = kt.InfluenceFunctions(
            model, train, damping=1, curvature="ekfac", layers=["logits"]
        ).influence(few)
        assert_close(found, expected.scores)

        work.run(
            score, *common, "--method=representer", "--l2=0.1", "--target=4"
        )
        found = kt.Attribution.load("out/other.npz").scores
        points = kt.RepresenterPoints(model, train, l2=0.1)
        assert_close(found, points.influence(few, target=4).scores)


@pytest.mark.parametrize("epochs", [(), (2, 5)])
def test_influence_functions_take_damping_and_checkpoints_from_the_run(
    work, epochs
):
    model, train, few = parts(work)
    run = kt.TrainingRun("runs/digits")
    chosen = run.select([i for i, c in enumerate(run) if c.epoch in epochs])
    flags = [f"--epochs={','.join(map(str, epochs))}"] if epochs else []
    work.run(
        score, TASK, FEW, "--method=influence", "--layers=logits", *flags,
        "--output=out/auto.npz", "--overwrite",
    )  # fmt: skip
    expected = kt.InfluenceFunctions(
        model, train, run=chosen if epochs else run[-1:], layers=["logits"]
    ).influence(few)
    found = kt.Attribution.load("out/auto.npz").scores
    assert_close(found, expected.scores)


def test_trak_is_of_all_checkpoints(work):
    model, train, few = parts(work)
    common = (TASK, FEW, "--method=trak", "--epochs=2,5")
    run = kt.TrainingRun("runs/digits")
    run = run.select([i for i, c in enumerate(run) if c.epoch in (2, 5)])
    work.run(
        score, *common, "--projection=gaussian", "--dim=64", "--damping=0.5",
        "--output=out/trak.npz", "--overwrite",
    )  # fmt: skip
    found = kt.Attribution.load("out/trak.npz").scores
    expected = kt.TRAK(
        model, train, run, projection=kt.GaussianProjection(64), damping=0.5
    ).influence(few)
    assert_close(found, expected.scores)
    work.run(self_influence, *common[:1], *common[2:], "--dim=64")


@pytest.mark.parametrize("method", ["tracin", "representer"])
def test_interrupted_call_goes_on_from_its_directory(work, monkeypatch, method):
    kept, result = f"parts/{method}", f"out/kept_{method}.csv"
    flags = (
        TASK,
        FEW,
        f"--method={method}",
        f"--directory={kept}",
        f"--output={result}",
    )
    with monkeypatch.context() as patch:
        patch.setattr(Output, "write", _interrupt)
        assert score.main(list(flags)) == 130
    assert not (work.directory / result).exists()
    scores = work.directory / kept / "influence" / "scores.npy"
    written = scores.stat().st_mtime_ns
    work.run(score, *flags)
    assert scores.stat().st_mtime_ns == written
    rows = table((work.directory / result).read_text())
    assert [row["query_id"] for row in rows] == ["3", "17"]
    assert len(rows[0]) == 1201


def _interrupt(*_):
    raise KeyboardInterrupt


def test_strategy_has_the_model_built_under_it(work):
    flags = (TASK, FEW, "--epochs=2,5", "--k=2")
    plain = table(work.run(score, *flags))
    spread = table(work.run(score, *flags, "--strategy=one_device"))
    assert [r["train_id"] for r in spread] == [r["train_id"] for r in plain]


def test_sum_over_queries_is_one_row(work):
    printed = work.run(score, TASK, FEW, "--aggregate", "--epochs=2,5")
    (row,) = table(printed)
    assert row["query_id"] == "sum"


def test_self_influence_is_ranked_in_a_table_and_in_order_in_arrays(work):
    flags = (TASK, "--epochs=2,5")
    work.run(self_influence, *flags, "--output=self.csv", "--overwrite")
    work.run(self_influence, *flags, "--output=self.npz", "--overwrite")
    found = kt.SelfInfluence.load("self.npz")
    np.testing.assert_array_equal(found.ids, np.arange(1200))
    rows = table((work.directory / "self.csv").read_text())
    assert [row["rank"] for row in rows[:3]] == ["1", "2", "3"]
    assert [int(row["train_id"]) for row in rows] == (
        found.ranking().ids.tolist()
    )
    model, train, _ = parts(work)
    run = kt.TrainingRun("runs/digits").select([1, 4])
    expected = kt.TracIn(model, train, run).self_influence()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5)


def test_a_task_without_a_run_needs_one(work, monkeypatch, tmp_path):
    text = "from digits_task import *\nrun = None\n"
    (tmp_path / "runless_task.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    line = work.refused(score, "--task=runless_task", FEW)
    assert re.search(row("no-run-flag", "--run=DIRECTORY"), line), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=digits_tsak"], row("no-module", "'digits_tsak'")),
        (
            ["--epochs=9"],
            row(
                "unknown-epoch",
                "9, ... no checkpoint ... of epochs 1, 2, 3, 4, 5",
            ),
        ),
        (
            ["--epochs=1", "--checkpoints=2"],
            "--checkpoints or --epochs, not both",
        ),
        (["--checkpoints=50"], "`count` should be from 1 to"),
        (
            ["--queries=3,500"],
            row("unknown-query", "'500', ... 100 test examples ... 0, 1, 2"),
        ),
        (["--layers=convolution"], "convolution"),
        (["--k=2000"], row("k", "not exceed")),
        (["--output=digits_task.py/scores.csv"], "cannot be written"),
        (["--method=representer", "--target=cat"], "target"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_leaves_nothing(
    work, arguments, message
):
    line = work.refused(score, TASK, FEW, *arguments)
    assert re.search(message, line), line
