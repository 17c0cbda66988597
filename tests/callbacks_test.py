"""What TracInCheckpoint records, held against what training did.

The model of `tests/unit_steps.py`: batch t moves the t-th weight by exactly the
rate that was applied in it.
"""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.callbacks import TracInCheckpoint
from keras_tracin.runs import TrainingRun
from keras_tracin.runs.steps import RecordingTrainFunction
from tests.error_rows import row
from tests.unit_steps import (
    BATCHES,
    EXPONENTIAL,
    SGD,
    At,
    CustomStep,
    Interrupted,
    Subclassed,
    assert_rates_were_applied,
    compiled,
    fit,
    make_model,
    output,
    weights_along,
)

ROOT = Path(__file__).absolute().parents[1]
Schedules = keras.optimizers.schedules


def interrupt_at(epoch):
    def raise_it(callback, index):
        if index == epoch:
            raise Interrupted

    return At(epoch_end=raise_it)


def set_rate(callback, batch):
    callback.model.optimizer.learning_rate = 0.01 * (batch + 1)


def eager(rate=0.1):
    """A model whose few steps take less time than to trace one."""
    return compiled(rate, run_eagerly=True)


WARMUP = Schedules.CosineDecay(0.0, 8, warmup_target=0.2, warmup_steps=3)
PIECEWISE = Schedules.PiecewiseConstantDecay([2, 5], [0.1, 0.2, 0.3])


@pytest.mark.parametrize(
    ("rate", "eagerly"),
    [(0.1, False), (0.1, True), (PIECEWISE, False), (WARMUP, True)],
)
def test_records_the_rate_that_was_applied(tmp_path, rate, eagerly):
    model = compiled(rate, run_eagerly=eagerly)
    fit(model, [TracInCheckpoint(tmp_path)], epochs=2)
    run = assert_rates_were_applied(model, tmp_path)
    assert len(run.learning_rates) == 2 * BATCHES


@pytest.mark.parametrize("kind", ["subclassed", "deferred"])
def test_records_every_kind_of_model(tmp_path, kind):
    model = compiled(EXPONENTIAL, kind=kind)
    fit(model, [TracInCheckpoint(tmp_path)])
    assert_rates_were_applied(model, tmp_path)


def test_building_the_model_early_does_not_change_its_training(tmp_path):
    def trained(callbacks):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(4), keras.layers.Dropout(0.5)]
        model = keras.Sequential([*layers, keras.layers.Dense(1)])
        model.compile("adam", output, metrics=["mse"])
        fit(model, callbacks, epochs=2)
        return model.get_weights()

    for alone, recorded in zip(
        trained([]), trained([TracInCheckpoint(tmp_path)]), strict=True
    ):
        np.testing.assert_array_equal(alone, recorded)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Keras explains too.
def test_a_model_that_cannot_be_built_early_is_refused(tmp_path):
    class Other(Subclassed):
        def call(self, x):
            raise NotImplementedError

    model = Other(keras.layers.Dense(1))
    model.compile(SGD(), output)
    with pytest.raises(ValueError, match=row("unbuildable")):
        fit(model, [TracInCheckpoint(tmp_path)])


def test_a_refused_callback_does_not_disturb_later_fits(tmp_path):
    fit(eager(), [TracInCheckpoint(tmp_path)])
    model, callback = eager(), TracInCheckpoint(tmp_path)
    fit(model, [], x=np.eye(BATCHES)[:1])
    with pytest.raises(ValueError, match=row("other-state", "overwrite=True")):
        fit(model, [callback])
    fit(model, [])
    assert model.get_weights()[0].all()
    assert len(TrainingRun(tmp_path)) == 1


def test_records_a_custom_train_step(tmp_path):
    model = CustomStep(make_model().layers)
    model.compile(SGD(EXPONENTIAL))
    fit(model, [TracInCheckpoint(tmp_path)])
    run = assert_rates_were_applied(model, tmp_path)
    assert "loss" in run[0].logs


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (
            lambda: keras.callbacks.LearningRateScheduler(
                lambda e: 0.1 / (e + 1)
            ),
            False,
        ),
        (
            lambda: keras.callbacks.ReduceLROnPlateau(
                "loss", patience=1, min_delta=1e9
            ),
            True,
        ),
        (lambda: At(train_batch_begin=set_rate), True),
        (lambda: At(train_batch_end=set_rate), True),
        (lambda: At(train_batch_end=set_rate), False),
    ],
)
def test_records_rates_that_callbacks_set(tmp_path, other, first):
    model = compiled(0.1)
    callbacks = [TracInCheckpoint(tmp_path), other()]
    fit(model, callbacks if first else callbacks[::-1], epochs=3)
    run = assert_rates_were_applied(model, tmp_path)
    assert len(set(run.learning_rates)) > 1


def test_several_steps_per_execution_are_each_recorded(tmp_path):
    model = compiled(EXPONENTIAL, steps_per_execution=4)  # 4 + 2 batches
    fit(model, [TracInCheckpoint(tmp_path)], epochs=2)
    run = assert_rates_were_applied(model, tmp_path)
    assert [c.step for c in run] == [6, 12]


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_accumulated_batches_are_one_step(tmp_path, steps_per_execution):
    optimizer = SGD(EXPONENTIAL, gradient_accumulation_steps=3)
    model = compiled(
        optimizer=optimizer, steps_per_execution=steps_per_execution
    )
    fit(model, [TracInCheckpoint(tmp_path)], epochs=2)
    run = TrainingRun(tmp_path)
    # An update moves three weights by a third of its rate each.
    moved = -np.diff(weights_along(model, run), axis=0).reshape(-1, 3)
    np.testing.assert_allclose(
        np.repeat(run.learning_rates[:, None] / 3, 3, axis=1), moved, rtol=1e-5
    )
    assert [c.num_steps for c in run] == [2, 2]


def test_steps_skipped_by_loss_scaling_are_not_steps(tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(EXPONENTIAL))
    model = compiled(optimizer=optimizer)
    x = np.eye(BATCHES, dtype="float32")
    x[2, 2] = np.inf
    fit(model, [TracInCheckpoint(tmp_path)], x=x)
    run = TrainingRun(tmp_path)
    moved = -np.diff(weights_along(model, run), axis=0).ravel()
    assert moved[2] == 0
    np.testing.assert_allclose(
        run.learning_rates, np.delete(moved, 2), rtol=1e-5
    )
    assert run[0].step == BATCHES - 1


def test_an_epoch_without_updates_makes_no_second_checkpoint(tmp_path):
    optimizer = keras.optimizers.LossScaleOptimizer(SGD(0.1))
    model = compiled(optimizer=optimizer)
    callback = TracInCheckpoint(tmp_path)
    fit(model, [callback])
    with pytest.warns(UserWarning, match="no update in epoch 2"):
        fit(model, [callback], x=np.full([2, BATCHES], np.inf, "float32"))
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == [BATCHES]
    assert run.epochs == [1, 2]


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(EXPONENTIAL, momentum=0.9),
        keras.optimizers.AdamW(EXPONENTIAL),
    ],
    ids=["momentum", "adamw"],
)
def test_records_the_rate_of_other_optimizers(tmp_path, optimizer):
    model = compiled(optimizer=optimizer)
    fit(model, [TracInCheckpoint(tmp_path)])
    expected = [float(EXPONENTIAL(step)) for step in range(BATCHES)]
    rates = TrainingRun(tmp_path).learning_rates
    np.testing.assert_allclose(rates, expected, rtol=1e-6)


def test_updates_outside_of_training_steps_are_warned_of(tmp_path):
    def update(callback, batch):
        if batch == 1:
            optimizer = callback.model.optimizer
            optimizer.apply([tf.zeros([BATCHES, 1])])

    with pytest.warns(UserWarning, match="counter went from 2 to 3"):
        fit(
            compiled(),
            [TracInCheckpoint(tmp_path), At(train_batch_end=update)],
        )


def test_a_second_fit_continues_the_run(tmp_path):
    model = compiled(EXPONENTIAL)
    callback = TracInCheckpoint(tmp_path, overwrite=True)
    fit(model, [callback], epochs=2)
    fit(model, [callback], epochs=1)
    fit(model, [TracInCheckpoint(tmp_path)], epochs=5, initial_epoch=3)
    run = assert_rates_were_applied(model, tmp_path)
    assert [c.epoch for c in run] == run.epochs == [1, 2, 3, 4, 5]
    assert [c.step for c in run] == [6, 12, 18, 24, 30]
    run.verify()


def test_a_recompiled_copy_of_the_model_continues_the_run(tmp_path):
    model = eager(0.1)
    fit(model, [TracInCheckpoint(tmp_path)])
    other = eager(0.3)
    other.set_weights(model.get_weights())
    fit(other, [TracInCheckpoint(tmp_path)])
    run = assert_rates_were_applied(other, tmp_path)
    assert [c.step for c in run] == [6, 12]
    assert [round(c.learning_rate, 3) for c in run] == [0.1, 0.3]


def test_staged_fine_tuning_is_one_run(tmp_path):
    layers = [keras.layers.Dense(2, use_bias=False) for _ in range(2)]
    model = keras.Sequential([keras.Input((BATCHES,)), *layers])
    layers[0].trainable = False
    model.compile(SGD(PIECEWISE), output, run_eagerly=True)
    fit(model, [TracInCheckpoint(tmp_path)])
    layers[0].trainable = True
    adam = keras.optimizers.Adam(Schedules.PiecewiseConstantDecay([2], [1, 2]))
    model.compile(adam, output, run_eagerly=True)
    fit(model, [TracInCheckpoint(tmp_path)])
    first, second = TrainingRun(tmp_path)
    assert [first.step, second.step] == [BATCHES, 2 * BATCHES]
    # The schedule of each stage begins at its start.
    assert dict(first.updated) == pytest.approx({1: 0.9 / 6})
    assert dict(second.updated) == pytest.approx({0: 9 / 6, 1: 9 / 6})


def test_another_state_is_refused_with_ways_out(tmp_path):
    model = eager()
    fit(model, [TracInCheckpoint(tmp_path)], epochs=2)
    model.set_weights([np.ones([BATCHES, 1])])
    restoring = f"TrainingRun({str(tmp_path)!r}).restore(model)"
    with pytest.raises(
        ValueError,
        match=row("other-state", "step 12 ...overwrite=True", restoring),
    ):
        fit(model, [TracInCheckpoint(tmp_path)])
    other = eager()
    other.set_weights(model.get_weights())
    with pytest.raises(ValueError, match=row("other-state")):
        fit(other, [TracInCheckpoint(tmp_path)], epochs=3, initial_epoch=2)
    assert len(TrainingRun(tmp_path)) == 2

    TrainingRun(tmp_path).restore(model)
    fit(model, [TracInCheckpoint(tmp_path)])
    assert len(TrainingRun(tmp_path)) == 3


def test_another_model_that_was_trained_is_refused(tmp_path):
    fit(eager(), [TracInCheckpoint(tmp_path)])
    other = make_model(inputs=3)
    other.compile(SGD(), output, run_eagerly=True)
    fit(other, [], batches=3)
    with pytest.raises(
        ValueError, match=row("other-run", "received ... (3, 1) ... (6, 1)")
    ):
        fit(other, [TracInCheckpoint(tmp_path)], batches=3)


def test_a_script_that_is_run_again_keeps_the_former_runs(tmp_path):
    def execute(rate, inputs=BATCHES):
        model = make_model(inputs=inputs)
        model.compile(SGD(rate), output, run_eagerly=True)
        fit(model, [TracInCheckpoint(tmp_path)], batches=inputs)
        return model

    first = execute(0.1)
    with pytest.warns(UserWarning, match=row("new-run", "earlier-1")):
        second = execute(0.2)
    with pytest.warns(UserWarning, match=row("new-run", "earlier-2")):
        third = execute(0.3, inputs=3)
    for model, place in [
        (first, tmp_path / "earlier-1"),
        (second, tmp_path / "earlier-2"),
        (third, tmp_path),
    ]:
        assert_rates_were_applied(model, place).verify()


def test_training_goes_on_from_averaged_weights(tmp_path):
    """Keras assigns an optimizer's averages to the weights as `fit` ends."""
    model = compiled(optimizer=SGD(0.1, use_ema=True, ema_momentum=0.5))
    callback = TracInCheckpoint(tmp_path)
    for _ in range(2):
        fit(model, [callback])
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == [BATCHES, 2 * BATCHES]
    assert run.weighted is False
    np.testing.assert_allclose(run.learning_rates, 0.1, rtol=1e-6)
    assert list(run.leading_to(model)) == list(run)


def test_epochs_after_the_best_one_are_kept_apart(tmp_path):
    model, callback = eager(), TracInCheckpoint(tmp_path)
    # The loss falls, so that the first epoch has the highest.
    stopping = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=2, restore_best_weights=True
    )
    fit(model, [callback, stopping], epochs=9)
    run = TrainingRun(tmp_path)
    assert [c.epoch for c in run] == [1, 2, 3]
    assert [c.epoch for c in run.leading_to(model)] == [1]

    with pytest.warns(
        UserWarning, match=row("gone-back", "step 6 ...step 18 ...earlier-1")
    ):
        fit(model, [callback])
    run = assert_rates_were_applied(model, tmp_path)
    assert [c.epoch for c in run] == run.epochs == [1, 2]
    kept = TrainingRun(tmp_path / "earlier-1")
    assert [c.epoch for c in kept] == [1, 2, 3]
    kept.verify()


def test_overwrite_replaces_whatever_run_is_there(tmp_path):
    fit(eager(), [TracInCheckpoint(tmp_path)], epochs=3)
    (tmp_path / "run.json").write_text("{")
    fit(eager(0.2), [TracInCheckpoint(tmp_path, overwrite=True)])
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == [6]
    files = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "run.json",
        "step-00000000.weights.h5",
        "step-00000006.weights.h5",
        "00000000.npz",
    }


def backup(tmp_path):
    return keras.callbacks.BackupAndRestore(tmp_path / "backup")


@pytest.mark.parametrize("first", [True, False])
def test_continues_after_backup_and_restore(tmp_path, first):
    directory = tmp_path / "run"

    def callbacks():
        both = [TracInCheckpoint(directory), backup(tmp_path)]
        return both if first else both[::-1]

    with pytest.raises(Interrupted):
        fit(eager(EXPONENTIAL), [*callbacks(), interrupt_at(1)], epochs=4)
    model = eager(EXPONENTIAL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(model, callbacks(), epochs=4)
    run = assert_rates_were_applied(model, directory)
    assert run.epochs == [1, 2, 3, 4]


def test_goes_back_to_where_backup_and_restore_did(tmp_path):
    directory = tmp_path / "run"
    callbacks = [TracInCheckpoint(directory), interrupt_at(2), backup(tmp_path)]
    with pytest.raises(Interrupted):
        fit(eager(EXPONENTIAL), callbacks, epochs=4)
    assert TrainingRun(directory).epochs == [1, 2, 3]

    model = eager(EXPONENTIAL)
    with pytest.warns(UserWarning, match="at step 12 .* up to step 18"):
        fit(model, [callbacks[0], callbacks[2]], epochs=4)
    run = assert_rates_were_applied(model, directory)
    assert run.epochs == [1, 2, 3, 4]
    run.verify()


def test_steps_whose_rates_were_lost_are_not_made_up(tmp_path):
    directory = tmp_path / "run"
    callbacks = [backup(tmp_path), interrupt_at(2), TracInCheckpoint(directory)]
    with pytest.raises(Interrupted):
        fit(eager(), callbacks, epochs=4)
    with pytest.raises(ValueError, match="list TracInCheckpoint before"):
        fit(eager(), [callbacks[0], callbacks[2]], epochs=4)
    assert TrainingRun(directory).epochs == [1, 2]


def test_epochs_selects_snapshots_but_not_rates(tmp_path):
    cases = [
        (None, [1, 2, 3, 4]),
        (2, [2, 4]),
        ([1, 3], [1, 3]),
        (np.array([4]), [4]),
        (lambda epoch, logs: epoch == 2 and "loss" in logs, [2]),
    ]
    callbacks = [
        TracInCheckpoint(tmp_path / str(case), epochs=epochs)
        for case, (epochs, _) in enumerate(cases)
    ]
    fit(eager(), callbacks, epochs=4)
    for case, (_, saved) in enumerate(cases):
        run = TrainingRun(tmp_path / str(case))
        assert [c.epoch for c in run] == saved
        assert len(run.learning_rates) == 4 * BATCHES
        assert run.epochs == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("steps_per_execution", "saved"), [(1, [4, 8, 12]), (3, [6, 9, 12])]
)
def test_save_freq_counts_steps(tmp_path, steps_per_execution, saved):
    model = compiled(EXPONENTIAL, steps_per_execution=steps_per_execution)
    fit(model, [TracInCheckpoint(tmp_path, save_freq=4)], epochs=2)
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == saved
    assert sum(c.learning_rate_sum for c in run) == pytest.approx(
        run.learning_rates.sum()
    )
    total = -weights_along(model, run)[-1].sum()
    assert run.learning_rates.sum() == pytest.approx(total, rel=1e-5)


def test_verbose_tells_of_each_snapshot(tmp_path, capsys):
    fit(eager(), [TracInCheckpoint(tmp_path)], epochs=2)
    assert capsys.readouterr().out == ""
    fit(eager(), [TracInCheckpoint(tmp_path, overwrite=True, verbose=1)])
    out = capsys.readouterr().out
    assert "Epoch 1: saved step 6 to" in out
    assert "step-00000006.weights.h5" in out


def test_the_model_is_left_as_keras_had_it(tmp_path):
    model = compiled()
    callback = TracInCheckpoint(tmp_path)
    fit(model, [callback])
    assert not isinstance(model.train_function, RecordingTrainFunction)
    assert callback.model is None


def test_interrupted_fits_do_not_pile_up_wrappers(tmp_path):
    model = compiled()
    for attempt in range(3):
        callback = TracInCheckpoint(tmp_path / str(attempt))
        with pytest.raises(Interrupted):
            fit(model, [callback, interrupt_at(0)])
    wrapped = model.train_function.train_function
    assert not isinstance(wrapped, RecordingTrainFunction)

    fit(model, [TracInCheckpoint(tmp_path / "last")])
    assert len(TrainingRun(tmp_path / "last").learning_rates) == BATCHES


def test_two_callbacks_record_two_runs(tmp_path):
    model = compiled(EXPONENTIAL)
    fit(model, [TracInCheckpoint(tmp_path / name) for name in "ab"])
    for name in "ab":
        assert_rates_were_applied(model, tmp_path / name)
    assert not isinstance(model.train_function, RecordingTrainFunction)


def test_an_interrupted_epoch_is_lost_and_nothing_else(tmp_path):
    model = eager()

    def stop(callback, batch):
        if callback.model.optimizer.iterations > BATCHES + 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            [TracInCheckpoint(tmp_path), At(train_batch_end=stop)],
            epochs=3,
        )
    run = TrainingRun(tmp_path)
    assert run.epochs == [1]
    run.verify()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"epochs": 0}, ValueError),
        ({"epochs": [0, 1]}, ValueError),
        ({"epochs": []}, ValueError),
        ({"epochs": 1.5}, TypeError),
        ({"epochs": [1.5]}, TypeError),
        ({"epochs": "all"}, TypeError),
        ({"epochs": True}, TypeError),
        ({"save_freq": 0}, ValueError),
        ({"save_freq": "batch"}, TypeError),
        ({"save_freq": True}, TypeError),
        ({"save_freq": 2, "epochs": 2}, ValueError),
    ],
)
def test_impossible_arguments_are_refused(arguments, error):
    with pytest.raises(error, match=r"Received .* expected"):
        TracInCheckpoint("unused", **arguments)


MIRRORED = """
import sys
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
logical = tf.config.LogicalDeviceConfiguration()
tf.config.set_logical_device_configuration(cpu, [logical, logical])
from keras_tracin.callbacks import TracInCheckpoint
from keras_tracin.runs import TrainingRun
from tests.unit_steps import EXPONENTIAL, make_model, output, weights_along

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = make_model()
    model.compile(keras.optimizers.SGD(EXPONENTIAL), output)
x = np.eye(6, dtype="float32")
model.fit(x, x[:, :1], batch_size=2, shuffle=False, epochs=2, verbose=0,
          callbacks=[TracInCheckpoint(sys.argv[1])])
run = TrainingRun(sys.argv[1])
moved = -np.diff(weights_along(model, run), axis=0).reshape(-1, 2)
np.testing.assert_allclose(moved.sum(1), run.learning_rates, rtol=1e-5)
assert len(run.learning_rates) == 6
"""


def run_python(code, *arguments, **options):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **options,
    )


def test_records_under_a_mirrored_strategy(tmp_path):
    process = run_python(MIRRORED, tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0, out


ENDLESS = """
import sys
from keras_tracin.callbacks import TracInCheckpoint
from tests.unit_steps import EXPONENTIAL, compiled, fit

model = compiled(EXPONENTIAL)
if sys.argv[2:]:
    model.load_weights(sys.argv[2])
fit(model, [TracInCheckpoint(sys.argv[1], save_freq=1, verbose=1)], 10**6)
"""


def test_a_killed_training_leaves_a_whole_run_that_continues(tmp_path):
    moments = np.random.default_rng(0).uniform(0, 0.5, size=2)
    arguments, seen = [tmp_path], 0
    for moment in moments:
        process = run_python(ENDLESS, *arguments)
        # The child reports each snapshot, and goes on while this one waits.
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "saved step" in line and len(lines) > 20:
                break
        else:
            pytest.fail("".join(lines))
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=moment)
        process.kill()
        process.communicate()

        run = TrainingRun(tmp_path)
        run.verify()
        assert len(run) > seen
        assert [c.step for c in run] == list(range(1, len(run) + 1))
        arguments, seen = [tmp_path, run[-1].path], len(run)
    # The second child had restored the optimizer's counter with the weights.
    expected = [float(EXPONENTIAL(step)) for step in (0, len(run) - 1)]
    np.testing.assert_allclose(
        run.learning_rates[[0, len(run) - 1]], expected, rtol=1e-5
    )
