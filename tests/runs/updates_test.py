"""The rates that updates noted, held against how far they moved the weights.

The model of `tests/unit_steps.py`: batch t moves the t-th weight by exactly
the rate that was applied in it.
"""

import copy
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.callbacks import TracInCheckpoint
from keras_tracin.runs import TrainingRun, updates
from keras_tracin.runs.steps import RecordingTrainFunction
from tests.error_rows import row
from tests.unit_steps import (
    BATCHES,
    EXPONENTIAL,
    SGD,
    At,
    CustomStep,
    Interrupted,
    assert_rates_were_applied,
    compiled,
    fit,
    make_model,
    output,
    weights_along,
)

Variable = keras.Variable


class Reads(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that is a function of a variable, not of the step."""

    def __init__(self, variable):
        self.variable = variable

    def __call__(self, step):
        return self.variable * 1.0

    def get_config(self):
        return {}


def divide(variable):
    return lambda callback, index: variable.assign(variable / 10)


@pytest.mark.parametrize(
    ("moment", "first"),
    [
        ("epoch_end", True),
        ("batch_end", True),
        ("batch_end", False),
        ("batch_begin", False),
    ],
)
def test_a_schedule_that_reads_a_variable_is_recorded_as_it_was_applied(
    tmp_path, moment, first
):
    variable = Variable(0.4)
    name = moment.replace("batch", "train_batch")
    halve = At(**{name: lambda cb, i: variable.assign(variable / 2)})
    model = compiled(Reads(variable))
    callbacks = [TracInCheckpoint(tmp_path), halve]
    fit(model, callbacks if first else callbacks[::-1], epochs=3)
    run = assert_rates_were_applied(model, tmp_path)
    if moment == "epoch_end":
        rates = [c.learning_rate for c in run]
        np.testing.assert_allclose(rates, [0.4, 0.2, 0.1], rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"jit_compile": True},
        {"run_eagerly": True},
        {"steps_per_execution": 4, "jit_compile": True},
    ],
    ids=str,
)
def test_it_is_so_however_the_steps_are_executed(tmp_path, options):
    variable = Variable(0.4)
    model = compiled(Reads(variable), **options)
    change = At(epoch_end=divide(variable))
    fit(model, [TracInCheckpoint(tmp_path), change], epochs=2)
    run = assert_rates_were_applied(model, tmp_path)
    assert [c.step for c in run] == [BATCHES, 2 * BATCHES]


def test_a_rate_that_is_a_callable_is_recorded(tmp_path):
    variable = Variable(0.4)
    model = compiled(optimizer=SGD(lambda: variable * 0.5))
    change = At(train_batch_end=lambda cb, i: variable.assign(variable / 2))
    fit(model, [TracInCheckpoint(tmp_path), change])
    run = assert_rates_were_applied(model, tmp_path)
    assert run.learning_rates[0] == pytest.approx(0.2)


@pytest.mark.parametrize("eagerly", [False, True])
def test_a_rate_set_in_the_train_step_is_recorded(tmp_path, eagerly):
    class SetsRate(CustomStep):
        def train_step(self, data):
            rate = self.optimizer.learning_rate
            self.optimizer.learning_rate = rate * 0.5
            return super().train_step(data)

    model = SetsRate(make_model().layers)
    model.compile(SGD(0.8), run_eagerly=eagerly)
    fit(model, [TracInCheckpoint(tmp_path)])
    run = assert_rates_were_applied(model, tmp_path)
    expected = 0.4 * 0.5 ** np.arange(BATCHES)
    np.testing.assert_allclose(run.learning_rates, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda rate: keras.optimizers.LossScaleOptimizer(
            SGD(rate, gradient_accumulation_steps=3)
        ),
        lambda rate: SGD(rate, gradient_accumulation_steps=3),
    ],
    ids=["both", "accumulated"],
)
def test_an_accumulated_or_scaled_update_notes_its_own_rate(
    tmp_path, optimizer
):
    variable = Variable(0.6)
    model = compiled(optimizer=optimizer(Reads(variable)))
    change = At(train_batch_end=lambda cb, i: variable.assign(variable - 0.05))
    fit(model, [TracInCheckpoint(tmp_path), change])
    run = TrainingRun(tmp_path)
    moved = -np.diff(weights_along(model, run), axis=0).ravel()
    every = BATCHES // len(run.learning_rates)
    expected = np.repeat(run.learning_rates / every, every)
    np.testing.assert_allclose(moved, expected, rtol=1e-4)
    assert len(set(run.learning_rates)) > 1


def test_a_model_that_trained_before_is_recorded_from_then_on(tmp_path):
    variable = Variable(0.4)
    model = compiled(Reads(variable))
    fit(model, [])
    own = model.train_function
    change = At(epoch_end=divide(variable))
    callback = TracInCheckpoint(tmp_path)
    for _ in range(2):
        fit(model, [callback, change], epochs=2)
        assert model.train_function is own
    run = TrainingRun(tmp_path)
    moved = -np.diff(weights_along(model, run), axis=0).sum(axis=1)
    sums = [c.learning_rate_sum for c in run]
    np.testing.assert_allclose(sums, moved, rtol=1e-4)
    means = [c.learning_rate for c in run]
    np.testing.assert_allclose(means, 0.4 / 10.0 ** np.arange(4), rtol=1e-5)


def test_a_second_recorded_fit_does_not_trace_the_step_again(tmp_path):
    traces = []

    class Counts(CustomStep):
        def train_step(self, data):
            traces.append(1)
            return super().train_step(data)

    model = Counts(make_model().layers)
    model.compile(SGD(0.1))
    callback = TracInCheckpoint(tmp_path)
    fit(model, [callback])
    count = len(traces)
    fit(model, [callback])
    assert len(traces) == count
    assert len(TrainingRun(tmp_path).learning_rates) == 2 * BATCHES


def test_no_update_is_lost_where_there_are_more_than_are_noted(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(updates, "_CAPACITY", 4)
    model = compiled(EXPONENTIAL)
    fit(model, [TracInCheckpoint(tmp_path)], epochs=3)
    assert_rates_were_applied(model, tmp_path)


class Loops(CustomStep):
    """Makes several updates in a step, of a third of the rate each."""

    times = 3

    def train_step(self, data):
        def update(index):
            super(Loops, self).train_step(data)
            return index + 1

        tf.while_loop(lambda index: index < self.times, update, [0])
        return {"loss": tf.zeros([])}


def test_updates_made_in_a_loop_are_all_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(updates, "_CAPACITY", 8)
    model = Loops(make_model().layers)
    model.compile(SGD(EXPONENTIAL))
    fit(model, [TracInCheckpoint(tmp_path, save_freq=3)])
    run = TrainingRun(tmp_path)
    moved = -np.diff(weights_along(model, run), axis=0).sum(axis=1)
    sums = [c.learning_rate_sum for c in run]
    np.testing.assert_allclose(sums, moved, rtol=1e-5)
    assert [c.num_steps for c in run] == [3] * BATCHES


def test_more_updates_in_one_step_than_are_noted_are_refused(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(updates, "_CAPACITY", 2)
    model = Loops(make_model().layers)
    model.times = 20
    model.compile(SGD(0.1))
    with pytest.raises(
        ValueError, match=row("many-updates", "made 20 updates ... 8 are kept")
    ):
        fit(model, [TracInCheckpoint(tmp_path)])


def test_an_optimizer_with_its_own_apply_is_refused(tmp_path):
    class Own(SGD):
        def apply(self, grads, trainable_variables=None):
            for grad, variable in zip(grads, trainable_variables, strict=True):
                variable.assign_sub(0.1 * grad)
            self._iterations.assign_add(1)

    model = compiled(optimizer=Own(0.1))
    with pytest.raises(ValueError, match=row("own-apply", "Own 'own")):
        fit(model, [TracInCheckpoint(tmp_path)])
    fit(model, [])
    assert not isinstance(model.train_function, RecordingTrainFunction)


@pytest.mark.parametrize(
    ("moment", "first", "save_freq"),
    [
        ("epoch_begin", True, 2),
        ("epoch_begin", False, "epoch"),
        ("train_batch_end", True, "epoch"),
        ("train_batch_end", False, 2),
    ],
)
def test_a_train_function_made_anew_is_recorded(
    tmp_path, moment, first, save_freq
):
    def remake(callback, index):
        if index == 1:
            callback.model.make_train_function(force=True)

    model = compiled(EXPONENTIAL)
    callback = TracInCheckpoint(tmp_path, save_freq=save_freq)
    callbacks = [callback, At(**{moment: remake})]
    fit(model, callbacks if first else callbacks[::-1], epochs=3)
    run = TrainingRun(tmp_path)
    moved = -np.diff(weights_along(model, run), axis=0).sum(axis=1)
    sums = [c.learning_rate_sum for c in run]
    np.testing.assert_allclose(sums, moved, rtol=1e-4)
    assert len(run) == (3 if save_freq == "epoch" else 9)
    assert "_backend_update_step" not in vars(model.optimizer)


def test_a_run_that_could_not_begin_is_refused(tmp_path):
    def remake(callback, index):
        callback.model.make_train_function(force=True)

    with pytest.raises(
        ValueError, match=row("own-loop", "6 updates ... list TracInCheckpoint")
    ):
        fit(compiled(), [TracInCheckpoint(tmp_path), At(epoch_begin=remake)])


def test_the_optimizer_is_left_as_it_was(tmp_path):
    model = compiled(optimizer=keras.optimizers.LossScaleOptimizer(SGD(0.1)))
    model.optimizer.build(model.trainable_variables)
    optimizers = [model.optimizer, model.optimizer.inner_optimizer]
    before = [set(vars(optimizer)) for optimizer in optimizers]
    num_variables = len(model.optimizer.variables)
    fit(model, [TracInCheckpoint(tmp_path)])
    assert [set(vars(optimizer)) for optimizer in optimizers] == before
    assert len(model.optimizer.variables) == num_variables


def test_a_model_is_saved_and_copied_while_it_is_recorded(tmp_path):
    copies = []

    def copy_model(callback, epoch):
        with keras.saving.custom_object_scope({"output": output}):
            copies.append(copy.deepcopy(callback.model))
            keras.models.clone_model(callback.model)

    model = compiled(EXPONENTIAL)
    fit(model, [TracInCheckpoint(tmp_path / "run"), At(epoch_end=copy_model)])
    assert_rates_were_applied(model, tmp_path / "run")
    np.testing.assert_array_equal(
        copies[0].get_weights()[0], model.get_weights()[0]
    )


def test_predictions_within_a_fit_change_nothing(tmp_path):
    def look(callback, batch):
        x = np.eye(BATCHES)
        callback.model.predict(x, verbose=0)
        callback.model.evaluate(x, x[:, :1], verbose=0)

    model = compiled(EXPONENTIAL)
    fit(model, [TracInCheckpoint(tmp_path), At(train_batch_end=look)])
    assert_rates_were_applied(model, tmp_path)


def fail(callback, index):
    raise Interrupted


def test_a_callback_of_a_fit_that_failed_does_not_record_the_next(tmp_path):
    model = compiled()
    kept = TracInCheckpoint(tmp_path / "failed")
    with pytest.raises(Interrupted):
        fit(model, [kept, At(epoch_begin=fail)])
    fit(model, [])
    assert not (tmp_path / "failed").exists()
    assert not isinstance(model.train_function, RecordingTrainFunction)
    assert "_backend_update_step" not in vars(model.optimizer)

    with pytest.raises(Interrupted):
        fit(model, [kept, At(epoch_begin=fail)])
    fit(model, [TracInCheckpoint(tmp_path / "other")])
    assert not (tmp_path / "failed").exists()
    assert len(TrainingRun(tmp_path / "other").learning_rates) == BATCHES
    fit(model, [kept])
    assert len(TrainingRun(tmp_path / "failed").learning_rates) == BATCHES


def test_a_fit_that_was_interrupted_leaves_nothing_behind(tmp_path):
    model = compiled()

    def interrupt(callback, batch):
        if batch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(model, [TracInCheckpoint(tmp_path), At(train_batch_end=interrupt)])
    fit(model, [])
    assert "_backend_update_step" not in vars(model.optimizer)
    assert TrainingRun(tmp_path).learning_rates.size == 0


def test_one_callback_records_two_fits(tmp_path):
    variable = Variable(0.4)
    model = compiled(Reads(variable))
    callback = TracInCheckpoint(tmp_path)
    for _ in range(2):
        fit(model, [callback])
        variable.assign(0.1)
    run = assert_rates_were_applied(model, tmp_path)
    np.testing.assert_allclose(
        [c.learning_rate for c in run], [0.4, 0.1], rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(EXPONENTIAL),
        keras.optimizers.LossScaleOptimizer(SGD(EXPONENTIAL)),
    ],
    ids=["plain", "scaled"],
)
def test_the_end_of_data_of_unknown_size_is_no_step(tmp_path, optimizer):
    x = np.eye(BATCHES, dtype="float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(1)
    model = compiled(optimizer=optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Between two batches")
        model.fit(
            data.filter(lambda x, y: True),
            epochs=3,
            shuffle=False,
            verbose=0,
            callbacks=[TracInCheckpoint(tmp_path)],
        )
    run = assert_rates_were_applied(model, tmp_path)
    assert [c.num_steps for c in run] == 3 * [BATCHES]


class Loop:
    """A training loop of the user's own, batch by batch."""

    def __init__(self, model, callback, tells_epochs):
        callbacks = keras.callbacks.CallbackList([callback], model=model)
        callbacks.on_train_begin()
        for epoch in range(2):
            if tells_epochs:
                callbacks.on_epoch_begin(epoch)
            for batch, x in enumerate(np.eye(BATCHES, dtype="float32")):
                model.train_on_batch(x[None], np.zeros([1, 1]))
                callbacks.on_train_batch_end(batch)
            if tells_epochs:
                callbacks.on_epoch_end(epoch)
        callbacks.on_train_end()


@pytest.mark.parametrize("tells_epochs", [True, False])
def test_train_on_batch_is_recorded(tmp_path, tells_epochs):
    model = compiled(EXPONENTIAL)
    Loop(model, TracInCheckpoint(tmp_path), tells_epochs)
    run = TrainingRun(tmp_path)
    expected = [float(EXPONENTIAL(step)) for step in range(2 * BATCHES)]
    np.testing.assert_allclose(run.learning_rates, expected, rtol=1e-6)
    assert run.epochs == ([1, 2] if tells_epochs else [1])
    moved = -np.diff(weights_along(model, run), axis=0).sum()
    assert moved == pytest.approx(sum(expected), rel=1e-5)

    model.train_on_batch(np.eye(BATCHES)[:1], np.zeros([1, 1]))
    fit(model, [])


def test_weights_that_an_unknown_optimizer_trains_are_warned_of(tmp_path):
    hidden = SGD(0.2)

    class Hides(CustomStep):
        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(self(data[0], training=True))
            variables = self.trainable_variables
            first, second = tape.gradient(loss, variables)
            self.optimizer.apply([first], variables[:1])
            hidden.apply([second], variables[1:])
            return {"loss": loss}

    layers = [keras.layers.Dense(2, use_bias=False) for _ in range(2)]
    model = Hides([keras.Input((BATCHES,)), *layers])
    model.compile(SGD(0.1))
    with pytest.warns(UserWarning, match=row("unheld-optimizer")):
        fit(model, [TracInCheckpoint(tmp_path / "hidden")], epochs=2)
    assert sorted(TrainingRun(tmp_path / "hidden")[0].updated) == [0]

    model.second_optimizer = hidden
    model.compile(SGD(0.1))
    fit(model, [TracInCheckpoint(tmp_path / "held")])
    run = TrainingRun(tmp_path / "held")
    assert dict(run[0].updated) == pytest.approx({0: 0.1, 1: 0.2})
    assert run[0].num_steps == BATCHES
