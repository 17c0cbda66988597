"""Writing runs: nothing listed is ever partial, earlier files never change."""

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_tracin.runs import RunWriter, TrainingRun
from keras_tracin.runs.earlier import keep_earlier
from keras_tracin.storage import files
from tests.error_rows import row
from tests.runs.helpers import make_model, make_run, shift_weights

FULL = Path("/dev/full")  # a file on a disk without room


def append(writer, model, num_steps=1, **options):
    arguments = {
        "epoch": 9,
        "logs": {},
        "epoch_end": True,
        "save_weights": True,
        **options,
    }
    rates = {"learning_rate": np.full(num_steps, 0.1)}
    return writer.append(model, rates, **arguments)


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_the_manifest_can_be_read_by_people(tmp_path):
    text = (make_run(tmp_path) / "run.json").read_text()
    manifest = json.loads(text)
    assert "\n  " in text
    assert manifest["format_version"] == 2
    assert manifest["model"]["class"] == "Sequential"
    assert [w[1:] for w in manifest["model"]["weights"]] == [
        [[3, 2], "float32"],
        [[2], "float32"],
    ]
    assert [s["last_step"] for s in manifest["segments"]] == [1, 3, 6, 7]


def test_appending_changes_no_earlier_file(tmp_path):
    model = make_model()
    before = contents(make_run(tmp_path, model))
    writer = RunWriter.reopen(tmp_path, model)
    assert (writer.last_step, writer.last_epoch) == (7, 4)
    path = append(writer, model, 2)
    assert path == tmp_path / "checkpoints/step-00000009.weights.h5"
    after = contents(tmp_path)
    del before["run.json"]
    assert before.items() <= after.items()
    assert TrainingRun(tmp_path)[-1].num_steps == 3


def test_a_step_has_one_checkpoint_at_most(tmp_path):
    model = make_model()
    writer = RunWriter.create(tmp_path, model)
    assert append(writer, model, num_steps=0) is None
    assert append(writer, model, num_steps=1) is not None
    assert append(writer, model, num_steps=0) is None
    assert [c.step for c in TrainingRun(tmp_path)] == [1]


@pytest.mark.parametrize("calls_before", range(4))
def test_a_write_that_fails_leaves_the_run_as_it_was(
    tmp_path, monkeypatch, calls_before
):
    """Steps, weights and manifest are put in place by one rename each."""
    model = make_model()
    before = contents(make_run(tmp_path, model))
    writer = RunWriter.reopen(tmp_path, model)
    calls = iter(range(100))
    replace = os.replace

    def failing(source, target):
        if next(calls) == calls_before:
            raise OSError("disk full")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    if calls_before == 3:
        append(writer, model)
        assert len(TrainingRun(tmp_path)) == 4
        return
    with pytest.raises(OSError, match="disk full"):
        append(writer, model)
    assert before.items() <= contents(tmp_path).items()
    assert writer.last_step == 7
    monkeypatch.undo()

    # The run can be continued, also by the same writer.
    append(writer, model)
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == [1, 3, 6, 8]
    run.verify()


def test_reopening_removes_what_a_crash_left_behind(tmp_path):
    model = make_model()
    before = contents(make_run(tmp_path, model))
    strays = [
        "unfinished-run.json",
        "checkpoints/unfinished-step-00000008.weights.h5",
        "checkpoints/step-00000008.weights.h5",
        "steps/00000009.npz",
    ]
    for stray in [*strays, "checkpoints/notes.txt"]:
        (tmp_path / stray).write_text("")
    RunWriter.reopen(tmp_path, model)
    assert contents(tmp_path) == {**before, "checkpoints/notes.txt": b""}


def test_going_back_to_an_earlier_state_drops_the_later_ones(tmp_path):
    model = make_model()
    run = TrainingRun(make_run(tmp_path, model))
    model.load_weights(run[1].path)
    with pytest.warns(UserWarning, match="at step 3 .* up to step 7"):
        writer = RunWriter.reopen(tmp_path, model)
    assert (writer.last_step, writer.last_epoch) == (3, 2)
    shift_weights(model, 7)
    append(writer, model)
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == [1, 3, 4]
    run.verify()


def test_initial_weights_begin_a_new_run(tmp_path):
    model = make_model()
    run = TrainingRun(make_run(tmp_path, model))
    model.load_weights(run.initial)
    with pytest.warns(UserWarning, match=row("new-run", "7 steps")):
        assert RunWriter.reopen(tmp_path, model).last_step == 0
    assert len(TrainingRun(tmp_path)) == 0
    assert len(TrainingRun(tmp_path / "earlier-1")) == 3


def test_a_run_without_steps_is_replaced(tmp_path):
    RunWriter.create(tmp_path, make_model())
    other = make_model(5)
    assert RunWriter.reopen(tmp_path, other, is_new=True).last_step == 0
    assert not (tmp_path / "earlier-1").exists()


@pytest.mark.parametrize("has_links", [True, False])
def test_an_earlier_run_is_kept_whole(tmp_path, monkeypatch, has_links):
    def fail(source, target):
        raise OSError("no links")

    if not has_links:
        monkeypatch.setattr(os, "link", fail)
    before = contents(make_run(tmp_path))
    for _ in range(2):  # The process may be killed before the run changes.
        kept = keep_earlier(tmp_path)
        assert kept == tmp_path / "earlier-1"
    assert contents(kept) == before
    RunWriter.create(tmp_path, make_model())
    assert contents(kept) == before


def test_dtypes_are_part_of_the_architecture(tmp_path):
    make_run(tmp_path)
    inputs, dense = keras.Input((3,)), keras.layers.Dense(2, dtype="float64")
    with pytest.raises(ValueError, match=r"float64, expected .* float32"):
        RunWriter.reopen(tmp_path, keras.Model(inputs, dense(inputs)))


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail():
        with files.written_whole(path) as unfinished:
            unfinished.write_text("new")
            assert path.read_text() == "old"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert contents(tmp_path) == {"file": b"old"}


@pytest.mark.skipif(not FULL.exists(), reason="a device of Linux")
def test_a_full_disk_is_kept_from_hdf5_until_it_is_done(tmp_path):
    """HDF5 would crash this process, at once or when it ends."""
    path = tmp_path / "a.weights.h5"
    path.symlink_to(FULL)
    with (
        pytest.raises(OSError, match="No space left"),
        files.error_keeping(path) as file,
    ):
        make_model().save_weights(file)


def test_an_error_of_keras_itself_is_not_kept(tmp_path):
    unbuilt = keras.Sequential([keras.layers.Dense(3)])
    with (
        pytest.raises(ValueError, match="not yet been built"),
        files.error_keeping(tmp_path / "a.weights.h5") as file,
    ):
        unbuilt.save_weights(file)


def test_a_file_that_keeps_errors_holds_the_weights(tmp_path):
    model = make_model()
    path = tmp_path / "a.weights.h5"
    with files.error_keeping(path) as file:
        model.save_weights(file)
    twin = make_model()
    twin.load_weights(path)
    for found, expected in zip(
        twin.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
