"""One writer at a time, and directories that stay where they were named."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import RunWriter, TrainingRun
from keras_tracin.runs import lock as locks
from keras_tracin.runs.lock import FILE_NAME, RunLock
from tests.error_rows import row
from tests.runs.helpers import make_model, make_run, shift_weights

X = np.random.default_rng(0).normal(size=[4, 3]).astype("float32")

# It has no need of TensorFlow, which takes seconds to import.
HOLDER = """
import importlib.util, os, sys, time
from pathlib import Path
spec = importlib.util.spec_from_file_location("lock", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["lock"] = module
spec.loader.exec_module(module)
lock = module.RunLock(Path(sys.argv[2]))
is_parent = "fork" in sys.argv and os.fork() > 0
if not is_parent:  # a child, which outlives its parent, says when it runs
    print("locked", flush=True)
time.sleep(300)
"""


@contextlib.contextmanager
def another_process(directory, *options):
    """One that has the lock of a directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, locks.__file__, directory, *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):  # The test ended it.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def compiled():
    model = make_model()
    model.compile("sgd", "mse", run_eagerly=True)
    return model


def fit(model, *callbacks, **options):
    model.fit(
        X, X[:, :2], verbose=0, batch_size=2, callbacks=list(callbacks),
        **options,
    )  # fmt: skip


def test_another_process_is_refused_until_it_is_killed(tmp_path):
    run = make_run(tmp_path / "run")
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    model = compiled()
    with another_process(run) as process:
        for overwrite in (False, True):
            callback = kt.TracInCheckpoint(run, overwrite=overwrite)
            with pytest.raises(ValueError, match=row("two-trainings")) as e:
                fit(model, callback)
            assert f"Process {process.pid} on " in str(e.value)
        assert (
            before.items()
            <= {
                p: p.read_bytes() for p in run.rglob("*") if p.is_file()
            }.items()
        )
        process.kill()
        process.wait()
        assert (run / FILE_NAME).exists()  # and harmless
        fit(model, callback)
    assert len(TrainingRun(run)) == 1
    assert not (run / FILE_NAME).exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_keeps_no_lock_of_a_killed_parent(tmp_path):
    with another_process(tmp_path, "fork") as process:
        with pytest.raises(ValueError, match=row("two-trainings")):
            RunLock(tmp_path)
        process.kill()
        process.wait()
        RunLock(tmp_path).release()


def test_another_thread_is_refused_until_its_training_ends(tmp_path):
    begun, may_end, errors = threading.Event(), threading.Event(), []

    class Wait(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            begun.set()
            may_end.wait(60)

    def train():
        try:
            fit(compiled(), kt.TracInCheckpoint(tmp_path), Wait(), epochs=2)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train, name="first")
    thread.start()
    assert begun.wait(60)
    with pytest.raises(
        ValueError, match=row("two-trainings", "thread 'first'")
    ):
        fit(compiled(), kt.TracInCheckpoint(tmp_path, overwrite=True))
    may_end.set()
    thread.join()
    assert not errors
    run = TrainingRun(tmp_path)
    assert run.epochs == [1, 2]
    run.verify()


def test_two_callbacks_of_one_fit_need_two_directories(tmp_path):
    both = [kt.TracInCheckpoint(tmp_path) for _ in range(2)]
    with pytest.raises(ValueError, match=row("two-recorders")):
        fit(compiled(), *both)
    fit(compiled(), kt.TracInCheckpoint(tmp_path, overwrite=True))
    fit(
        compiled(),
        kt.TracInCheckpoint(tmp_path / "a"),
        kt.TracInCheckpoint(tmp_path / "b"),
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_fit_that_failed_leaves_the_directory_free(tmp_path, error):
    class Fail(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise error

    model, callback = compiled(), kt.TracInCheckpoint(tmp_path)
    with pytest.raises(error) as kept:  # its frames live on
        fit(model, callback, Fail())
    fit(compiled(), kt.TracInCheckpoint(tmp_path, overwrite=True))
    with pytest.raises(error):
        fit(model, kt.TracInCheckpoint(tmp_path, overwrite=True), Fail())
    fit(model, callback, epochs=2)
    assert kept.value is not None
    TrainingRun(tmp_path).verify()


def test_a_second_fit_of_a_callback_goes_on(tmp_path):
    model, callback = compiled(), kt.TracInCheckpoint(tmp_path)
    fit(model, callback)
    fit(model, callback)
    assert TrainingRun(tmp_path).epochs == [1, 2]
    assert not (tmp_path / FILE_NAME).exists()


def append(writer, model):
    shift_weights(model)
    rates = {"learning_rate": np.array([0.1])}
    options = {"epoch": 1, "logs": {}, "epoch_end": True, "save_weights": True}
    return writer.append(model, rates, **options)


def test_a_writer_that_was_taken_for_ended_is_told(tmp_path):
    model = make_model()
    first = RunWriter.create(tmp_path, model)
    second = RunWriter.reopen(tmp_path, model)
    append(second, model)
    second.close()
    with pytest.raises(
        ValueError, match=row("changed-manifest", "run.json is")
    ):
        append(first, model)
    assert [c.step for c in TrainingRun(tmp_path)] == [1]


def test_a_writer_goes_on_after_another_was_refused(tmp_path):
    model = make_model()
    first = RunWriter.create(tmp_path, model)
    with pytest.raises(ValueError, match=row("other-run")):
        RunWriter.reopen(tmp_path, make_model(5))
    append(first, model)
    assert [c.step for c in TrainingRun(tmp_path)] == [1]


def test_a_deleted_run_is_not_written_to(tmp_path):
    model = make_model()
    writer = RunWriter.create(tmp_path, model)
    (tmp_path / "run.json").unlink()
    with pytest.raises(ValueError, match=row("changed-manifest")):
        append(writer, model)


def test_the_lock_ends_with_what_holds_it(tmp_path):
    lock = RunLock(tmp_path)
    assert (tmp_path / FILE_NAME).exists()
    del lock
    assert not (tmp_path / FILE_NAME).exists()


def test_a_link_to_the_directory_is_the_same_directory(tmp_path):
    directory, link = tmp_path / "run", tmp_path / "link"
    lock = RunLock(directory)
    link.symlink_to(directory)
    failures = []

    def try_it():
        try:
            RunLock(link)
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert len(failures) == 1
    lock.release()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def unsupported(descriptor):
        raise OSError(os.strerror(37))

    monkeypatch.setattr(locks, "_try_to_lock", unsupported)
    with pytest.warns(UserWarning, match="has no locks"):
        RunLock(tmp_path).release()


def test_a_run_stays_where_it_was_named(tmp_path, monkeypatch, capsys):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)

    class Go(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            os.chdir(elsewhere)

        def on_epoch_end(self, epoch, logs=None):
            os.chdir(tmp_path)

    callback = kt.TracInCheckpoint("run", verbose=1)
    fit(compiled(), callback, Go(), epochs=2)
    assert f"to {os.path.join('run', 'checkpoints')}" in capsys.readouterr().out
    assert list(elsewhere.iterdir()) == []
    run = TrainingRun("run")
    assert repr(run).startswith("<TrainingRun of run: 2 checkpoints")
    os.chdir(elsewhere)
    run.verify()
    assert run[0].path.is_file()
    assert run.initial.is_file()
    assert callback.directory == run.directory == tmp_path / "run"


@pytest.mark.parametrize("make", [kt.TracInCheckpoint, TrainingRun])
@pytest.mark.parametrize(
    ("directory", "kind", "message"),
    [
        ("", ValueError, row("no-directory", "the name")),
        ("  ", ValueError, row("no-directory", "the name")),
        ("a\0b", ValueError, row("no-directory", "the name")),
        ("gs://bucket/run", ValueError, row("remote-directory")),
        (None, TypeError, row("no-directory", "the path")),
        (b"run", TypeError, row("no-directory", "the path")),
        (3, TypeError, row("no-directory", "the path")),
        ("file", ValueError, row("file-for-directory")),
        ("file/run", ValueError, row("file-for-directory")),
    ],
)
def test_what_is_no_directory_is_refused_at_once(
    tmp_path, monkeypatch, make, directory, kind, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(kind, match=message):
        make(directory)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
