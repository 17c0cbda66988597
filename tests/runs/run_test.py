"""Reading runs: intervals, selections, adopted files and damaged ones."""

import json

import numpy as np
import pytest

from keras_tracin.runs import TrainingRun
from keras_tracin.storage import files as storage_files
from tests.error_rows import row, says
from tests.runs.helpers import RATES, make_model, make_run


@pytest.fixture
def directory(tmp_path):
    """Steps 1, 3 and 6 are checkpoints; a seventh step follows."""
    return make_run(tmp_path / "run")


def edit_manifest(directory, edit):
    path = directory / "run.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


def test_a_checkpoint_tells_of_its_interval(directory):
    run = TrainingRun(directory)
    assert [c.step for c in run] == [1, 3, 6]
    assert [c.epoch for c in run] == [1, 2, 3]
    assert [c.num_steps for c in run] == [1, 2, 3]
    intervals = [RATES[:1], RATES[1:3], RATES[3:6]]
    for checkpoint, rates in zip(run, intervals, strict=True):
        assert checkpoint.learning_rate == pytest.approx(np.mean(rates))
        assert checkpoint.learning_rate_sum == pytest.approx(np.sum(rates))
        assert checkpoint.path.is_file()
    assert run[0].logs == {"loss": 1.0}


def test_a_run_tells_of_all_its_steps_and_epochs(directory):
    run = TrainingRun(directory)
    assert run.learning_rates.dtype == np.float64
    np.testing.assert_array_equal(run.learning_rates, RATES)
    assert run.history == {"loss": [1.0, 2.0, 3.0, 4.0], "mae": [2.0, 4.0]}
    assert run.epochs == [1, 2, 3, 4]
    assert run.directory == directory
    assert run.initial == directory / "checkpoints/step-00000000.weights.h5"
    assert repr(run) == (
        f"<TrainingRun of {directory}: 3 checkpoints, steps 1-6, epochs 1-3>"
    )
    assert "no checkpoints" in repr(run[:0])
    run.verify()


def test_a_run_is_a_sequence(directory):
    run = TrainingRun(directory)
    assert len(run) == 3
    assert run[np.int64(-1)] == run[2] == list(run)[2]
    assert run[1] in run
    with pytest.raises(IndexError):
        run[3]
    assert isinstance(run[1:], TrainingRun)


@pytest.mark.parametrize(
    ("select", "steps"),
    [
        (lambda run: run[1:], [3, 6]),
        (lambda run: run[::2], [1, 6]),
        (lambda run: run.select([0, -1]), [1, 6]),
        (lambda run: run.select(np.array([2])), [6]),
        (lambda run: run[:2][1:], [3]),
        (lambda run: run[:0], []),
    ],
)
def test_intervals_of_a_selection_add_up(directory, select, steps):
    selected = select(TrainingRun(directory))
    assert [c.step for c in selected] == steps
    starts = [0, *steps]
    for start, checkpoint in zip(starts, selected, strict=False):
        rates = RATES[start : checkpoint.step]
        assert checkpoint.num_steps == len(rates)
        assert checkpoint.learning_rate_sum == pytest.approx(np.sum(rates))
        assert checkpoint.learning_rate == pytest.approx(np.mean(rates))
    np.testing.assert_array_equal(selected.learning_rates, RATES)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([1, 0], ValueError, "increasing"),
        ([1, 1], ValueError, "increasing"),
        ([0, -3], ValueError, "increasing"),
        ([3], IndexError, "3 checkpoints"),
        ([1.0], TypeError, "float"),
        ([True, False, True], TypeError, "flatnonzero"),
    ],
)
def test_impossible_selections_are_refused(directory, indices, error, message):
    with pytest.raises(error, match=message):
        TrainingRun(directory).select(indices)


def test_a_mean_rate_of_zero_is_legitimate(tmp_path):
    run = TrainingRun(make_run(tmp_path, rates=np.zeros(7)))
    assert [c.learning_rate for c in run] == [0.0, 0.0, 0.0]


def test_arrays_of_other_names_are_left_alone(tmp_path):
    directory = make_run(tmp_path, order=np.arange(7))
    np.testing.assert_array_equal(TrainingRun(directory).learning_rates, RATES)
    with np.load(directory / "steps/00000001.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["order"], [1, 2])


def test_a_run_names_what_led_to_a_model(directory):
    run, model = TrainingRun(directory), make_model()
    model.load_weights(run[1].path)
    assert list(run.leading_to(model)) == [run[0], run[1]]
    assert list(run[1:].leading_to(model)) == [run[1:][0]]
    model.load_weights(run.initial)
    assert len(run.leading_to(model)) == 0
    adopted = TrainingRun.from_weights([run[0].path], 0.1)
    for unknown in (run, adopted):
        with pytest.raises(ValueError, match=row("unknown-state")):
            unknown.leading_to(make_model())


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=row("missing-run")):
        TrainingRun(tmp_path / "missing")
    with pytest.raises(ValueError, match=row("no-run", "TracInCheckpoint")):
        TrainingRun(tmp_path)


@pytest.mark.parametrize("name", ["01.weights.h5", "model.keras"])
def test_weights_in_place_of_a_run_are_told_how_to_become_one(tmp_path, name):
    file = tmp_path / name
    file.touch()
    for place, what in ((tmp_path, "has no run.json"), (file, "is a file")):
        with pytest.raises(ValueError, match=row("run-of-weights", what)):
            TrainingRun(place)


@pytest.mark.parametrize("name", ["weights.h5", "ckpt-1.index"])
def test_weights_of_keras_2_are_told_how_to_be_converted(tmp_path, name):
    file = tmp_path / name
    file.touch()
    for place in (tmp_path, file):
        with pytest.raises(ValueError, match=row("old-weights", str(place))):
            TrainingRun(place)
    with pytest.raises(ValueError, match=row("old-weights", str(file))):
        TrainingRun.from_weights([file], 0.1)


def test_a_file_of_another_kind_is_no_run(tmp_path):
    file = tmp_path / "notes.txt"
    file.touch()
    with pytest.raises(ValueError, match=says("is a file", "TracInCheckpoint")):
        TrainingRun(file)


def test_a_truncated_manifest_is_refused(directory):
    text = (directory / "run.json").read_text()
    (directory / "run.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=row("cut-manifest")):
        TrainingRun(directory)


def test_a_newer_format_is_refused(directory):
    edit_manifest(directory, lambda m: m.update(format_version=3))
    with pytest.raises(
        ValueError, match=row("newer-run", "version 3... Update")
    ):
        TrainingRun(directory)


@pytest.mark.parametrize("part", ["format_version", "model", "checkpoints"])
def test_an_incomplete_manifest_is_refused(directory, part):
    edit_manifest(directory, lambda m: m.pop(part))
    with pytest.raises(
        ValueError, match=row("edited-manifest", f"{part}... missing")
    ):
        TrainingRun(directory)


def test_a_manifest_that_is_something_else_is_refused(directory):
    (directory / "run.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=row("edited-manifest")):
        TrainingRun(directory)


FILES = [
    "checkpoints/step-00000000.weights.h5",
    "checkpoints/step-00000003.weights.h5",
    "steps/00000002.npz",
]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(directory, file):
    (directory / file).unlink()
    with pytest.raises(ValueError, match=row("missing-file", f"{file} is")):
        TrainingRun(directory)


@pytest.mark.parametrize("file", FILES)
def test_a_truncated_file_is_named(directory, file):
    content = (directory / file).read_bytes()
    (directory / file).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=row("cut-file", f"{file} is")):
        TrainingRun(directory)


@pytest.mark.parametrize("file", FILES)
def test_verify_names_a_file_whose_content_changed(directory, file):
    run = TrainingRun(directory)
    content = bytearray((directory / file).read_bytes())
    content[len(content) // 2] ^= 1
    (directory / file).write_bytes(content)
    with pytest.raises(ValueError, match=row("flipped-bit", f"{file} is")):
        run.verify()


def replace_segment(directory, **arrays):
    path = directory / "steps/00000001.npz"
    np.savez(path, **arrays)
    edit_manifest(
        directory,
        lambda m: m["segments"][1].update(storage_files.describe(path)),
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.1])
def test_a_rate_that_cannot_be_one_is_refused_with_its_step(directory, bad):
    replace_segment(directory, learning_rate=np.array([0.1, bad]))
    with pytest.raises(
        ValueError, match=row("impossible-rates", f"rate of {bad} at step 3")
    ):
        TrainingRun(directory)


@pytest.mark.parametrize(
    "arrays", [{"other": np.ones(2)}, {"learning_rate": np.ones(3)}]
)
def test_missing_rates_are_refused(directory, arrays):
    replace_segment(directory, **arrays)
    with pytest.raises(
        ValueError, match=row("missing-rates", "for steps 2 to 3")
    ):
        TrainingRun(directory)


@pytest.fixture
def files(tmp_path):
    """Four files as ModelCheckpoint writes them, of both kinds."""
    model = make_model()
    kinds = [".weights.h5", ".weights.h5", ".keras", ".weights.h5"]
    paths = [tmp_path / f"{i}{kind}" for i, kind in enumerate(kinds)]
    for path in paths:
        save = model.save if path.suffix == ".keras" else model.save_weights
        save(path)
    return paths


def test_adopted_files_have_rates_but_no_steps(files):
    run = TrainingRun.from_weights(map(str, files), [0.4, 0.3, 0.2, 0.1])
    assert [c.path for c in run] == files
    assert [c.epoch for c in run] == [1, 2, 3, 4]
    assert [c.learning_rate for c in run] == [0.4, 0.3, 0.2, 0.1]
    for c in run:
        assert c.step is c.num_steps is c.learning_rate_sum is None
    assert run.directory is run.initial is run.learning_rates is None
    assert "adopted files: 4 checkpoints, epochs 1-4" in repr(run)
    run.verify()
    files[1].unlink()
    with pytest.raises(ValueError, match=r"1\.weights\.h5 does not exist"):
        run.verify()


def test_one_rate_is_taken_for_all_adopted_files(files):
    run = TrainingRun.from_weights(files, 0.5)
    assert [c.learning_rate for c in run] == [0.5] * 4


def test_selecting_adopted_files_averages_rates_over_epochs(files):
    rates = [0.4, 0.3, 0.2, 0.1]
    run = TrainingRun.from_weights(files, rates, epochs=[2, 3, 4, 8])
    first, last = run.select([1, 3])
    assert first.learning_rate == pytest.approx((2 * 0.4 + 0.3) / 3)
    assert last.learning_rate == pytest.approx((0.2 + 4 * 0.1) / 5)


@pytest.mark.parametrize(
    ("rates", "epochs", "message"),
    [
        ([0.1, -0.1, 0.1, 0.1], None, "rate of -0.1 at position 1"),
        (np.nan, None, "rate of nan"),
        ([0.1, 0.1], None, "each of the 4 files"),
        (0.1, [1, 2, 3], "expected 4 increasing"),
        (0.1, [0, 1, 2, 3], "expected 4 increasing"),
        (0.1, [1, 2, 2, 3], "expected 4 increasing"),
    ],
)
def test_impossible_rates_and_epochs_are_refused(files, rates, epochs, message):
    with pytest.raises(ValueError, match=message):
        TrainingRun.from_weights(files, rates, epochs)


def test_files_that_cannot_be_adopted_are_refused(files, tmp_path):
    with pytest.raises(ValueError, match=row("missing-run")):
        TrainingRun.from_weights([tmp_path / "missing.keras"], 0.1)
    with pytest.raises(ValueError, match=r"expected a \.weights\.h5 or"):
        TrainingRun.from_weights([tmp_path / "legacy.h5"], 0.1)
    with pytest.raises(ValueError, match="no files"):
        TrainingRun.from_weights([], 0.1)
    with pytest.raises(TypeError, match="one path"):
        TrainingRun.from_weights(files[0], 0.1)
