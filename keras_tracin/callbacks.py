"""The callback that records a training run while `model.fit` trains."""

from __future__ import annotations

import operator
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.runs import RunWriter
from keras_tracin.runs import manifest as run_manifest


class TracInCheckpoint(keras.callbacks.Callback):
    """Records a training run: checkpoints and the learning rate of each step.

    This is all that `TracIn` needs to know of the training (section A of the
    paper: the weights w_k and the rates η_k of checkpoints). A *step* is an
    update that the optimizer applied; a batch may make several
    (`steps_per_execution`) or none (gradient accumulation, loss scaling). The
    rate recorded for a step is the one that this update used.

    A directory holds one run. Training that goes on from its last state, in
    the same process or in another, continues it, also after the model was
    compiled again; steps and epochs go on counting. Training that goes on from
    an earlier recorded state, where `keras.callbacks.BackupAndRestore` put
    back an older epoch for example, drops what was recorded later, with a
    warning. List this callback before `BackupAndRestore`, so that the run is
    never behind the backup. An interrupted `fit` loses the rates recorded
    since the last epoch end or snapshot, nothing else.

    Example:
    ```python
    checkpoints = TracInCheckpoint("runs/digits", epochs=2)
    model.fit(x, y, epochs=10, callbacks=[checkpoints])

    run = TrainingRun("runs/digits")  # epochs 2, 4, 6, 8, 10
    ```

    Args:
        directory: Where the run is written. It is made if needed.
        epochs: At which epoch ends to save weights. None for all of them, an
            int k for every k-th, an iterable of epochs counted from 1, or a
            callable `(epoch, logs) -> bool`. Epochs count over the whole run.
        save_freq: `"epoch"`, or an int to save weights every that many steps
            of the run instead (at the end of the batch in which such a step
            falls).
        overwrite: Whether to replace a run found in the directory when this
            callback first sees it. A second `fit` with it continues its own.
        verbose: 1 to print a line for each snapshot, 0 to be silent.

    What is saved: all weights, BatchNormalization statistics, seeds and the
    optimizer's state. The weights before the first step are saved too, but do
    not count as a checkpoint. Where no update was applied since the last
    snapshot, no second one of the same step is made. The rate of an optimizer
    made with a plain callable is read once for each execution of the train
    function.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has an impossible value; or, as training
            begins, the directory holds a run of another model or in another
            state than this model's.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        epochs: int | Iterable[int] | Callable[[int, dict], bool] | None = None,
        save_freq: str | int = "epoch",
        overwrite: bool = False,
        verbose: int = 0,
    ):
        super().__init__()
        self.directory = Path(directory)
        self.save_freq = _checked_save_freq(save_freq, epochs)
        self.overwrite = overwrite
        self.verbose = verbose
        self._is_chosen = _epoch_filter(epochs)
        self._opened = False
        self._writer: RunWriter | None = None
        self._steps = _StepLog()
        self._epoch = 0
        # Keras may then call back while the next batch trains. It is only
        # with an int that something is done, and must be in time.
        self.async_safe = save_freq == "epoch"

    def on_train_begin(self, logs=None):
        # The run is opened later: BackupAndRestore, if it comes after this
        # callback, has not yet put the weights into the model.
        self._writer = None
        self._steps = _StepLog()
        _record_steps(self.model, self._steps)

    def on_epoch_begin(self, epoch, logs=None):
        # Another callback may have compiled the model anew.
        _record_steps(self.model, self._steps)
        if self._writer is None:
            self._writer = self._open()
            self._epoch = max(epoch, self._writer.last_epoch)
        self._epoch += 1

    def on_train_batch_end(self, batch, logs=None):
        if self.save_freq == "epoch":
            return
        step = self._writer.last_step + self._steps.num_steps
        last_saved = self._writer.last_saved_step
        if step // self.save_freq > last_saved // self.save_freq:
            self._write(logs, epoch_end=False, save_weights=True)

    def on_epoch_end(self, epoch, logs=None):
        chosen = self.save_freq == "epoch" and self._is_chosen(
            self._epoch, dict(logs or {})
        )
        self._write(logs, epoch_end=True, save_weights=chosen)

    def on_train_end(self, logs=None):
        _stop_recording(self.model, self._steps)
        self._writer = None
        self.set_model(None)

    def _open(self) -> RunWriter:
        replace = self.overwrite and not self._opened
        if replace or not run_manifest.exists(self.directory):
            writer = RunWriter.create(self.directory, self.model)
        else:
            writer = RunWriter.reopen(self.directory, self.model)
        self._opened = True
        return writer

    def _write(self, logs, *, epoch_end: bool, save_weights: bool) -> None:
        """Writes the steps since the last write, and a snapshot if wanted."""
        rates = self._steps.take_learning_rates(eagerly=self.model.run_eagerly)
        path = self._writer.append(
            self.model,
            {"learning_rate": rates},
            epoch=self._epoch,
            logs=_scalars(logs or {}),
            epoch_end=epoch_end,
            save_weights=save_weights,
        )
        if path and self.verbose:
            step = self._writer.last_step
            print(f"\nEpoch {self._epoch}: saved step {step} to {path}")


class _StepLog:
    """The optimizer's updates since the last write, and their rates.

    They are kept as spans `[source, every, start, stop]` of the optimizer's
    raw counter, with the source of the rates in them: a number, or a schedule
    that is evaluated later, all counts at once. With gradient accumulation,
    only the last of `every` counts is an update, whose rate the schedule gives
    at that raw count.
    """

    def __init__(self):
        self._spans: list[list] = []
        self._evaluate: dict[int, Callable] = {}
        self.last_count: int | None = None
        self.num_steps = 0

    def add(self, source, every: int, start: int, stop: int) -> None:
        if self.last_count not in (None, start):
            warnings.warn(
                f"Between two batches the optimizer's counter went from "
                f"{self.last_count} to {start}. Updates made outside of "
                "model.train_step are not in the recorded run.",
                stacklevel=2,
            )
        self.last_count = stop
        self.num_steps += stop // every - start // every
        if self._spans and self._spans[-1][:2] + self._spans[-1][3:] == [
            source,
            every,
            start,
        ]:
            self._spans[-1][3] = stop
        elif stop > start:
            self._spans.append([source, every, start, stop])

    def take_learning_rates(self, *, eagerly: bool) -> np.ndarray:
        """The rates as float64 `[num_steps]`; the log is empty afterwards."""
        parts = [np.empty(0)]
        for source, every, start, stop in self._spans:
            updates = np.arange(start // every, stop // every)
            counts = (updates + 1) * every - 1
            if isinstance(source, float):
                parts.append(np.full(len(counts), source))
            elif eagerly:
                parts.append(np.array([_number(source(c)) for c in counts]))
            else:
                parts.append(self._scheduled(source)(counts).numpy())
        self._spans.clear()
        self.num_steps = 0
        return np.concatenate(parts)

    def _scheduled(self, schedule) -> Callable:
        """A compiled function from counts `[n]` to rates `[n]`."""
        if id(schedule) not in self._evaluate:

            @tf.function(input_signature=[tf.TensorSpec([None], tf.int64)])
            def evaluate(counts):
                return tf.map_fn(
                    lambda count: tf.cast(schedule(count), tf.float64),
                    counts,
                    fn_output_signature=tf.TensorSpec([], tf.float64),
                )

            self._evaluate[id(schedule)] = evaluate
        return self._evaluate[id(schedule)]


class _RecordingTrainFunction:
    """A model's `train_function` that logs the updates which each call makes.

    The counter and the rate are read right before and after the call, because
    other callbacks change the rate at either end of a batch.

    The logs are held weakly: those of a `fit` that ended in an exception go
    away with their callback, and so one wrapper is enough for any number.
    """

    def __init__(self, model: keras.Model):
        self.train_function = model.train_function
        self.logs: weakref.WeakSet[_StepLog] = weakref.WeakSet()
        self._model = model

    def __call__(self, iterator):
        if not self.logs:
            return self.train_function(iterator)
        optimizer = _updating_optimizer(self._model)
        every = optimizer.gradient_accumulation_steps or 1
        start, source = _count(optimizer), _rate_source(optimizer)
        result = self.train_function(iterator)
        stop, source_after = _count(optimizer), _rate_source(optimizer)
        if source != source_after and stop // every > start // every:
            raise ValueError(
                f"The learning rate went from {source} to {source_after} "
                "while the train function ran, so the rate that was applied "
                "cannot be told. Set it with a LearningRateSchedule or from a "
                "callback, not in train_step."
            )
        for log in self.logs:
            log.add(source, every, start, stop)
        return result


def _record_steps(model: keras.Model, log: _StepLog) -> None:
    """From now on, `log` is told of each step that `model.fit` makes."""
    if not isinstance(model.train_function, _RecordingTrainFunction):
        model.train_function = _RecordingTrainFunction(model)
        log.last_count = None
    model.train_function.logs.add(log)


def _stop_recording(model: keras.Model, log: _StepLog) -> None:
    """The opposite of `_record_steps`."""
    function = model.train_function
    if isinstance(function, _RecordingTrainFunction):
        function.logs.discard(log)
        if not function.logs:
            model.train_function = function.train_function


def _updating_optimizer(model: keras.Model) -> Any:
    """The optimizer whose counter advances with each update."""
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def _number(value) -> float:
    # Under a distribution strategy a variable does not convert by float().
    return float(keras.ops.convert_to_numpy(value))


def _count(optimizer) -> int:
    """Batches the optimizer has seen (of which it may accumulate several)."""
    return int(keras.ops.convert_to_numpy(optimizer._iterations))


def _rate_source(optimizer) -> Any:
    """The present rate as a float, or the schedule that gives it."""
    # `optimizer.learning_rate` would evaluate a schedule, slowly.
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate
    return _number(optimizer.learning_rate)


def _scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are single numbers."""
    return {
        name: float(value)
        for name, value in logs.items()
        if np.ndim(value) == 0
        and np.issubdtype(np.asarray(value).dtype, np.number)
    }


def _checked_save_freq(save_freq, epochs):
    if save_freq == "epoch":
        return save_freq
    if isinstance(save_freq, bool) or not hasattr(save_freq, "__index__"):
        raise TypeError(
            f"Received save_freq={save_freq!r}, expected 'epoch' or a number "
            "of optimizer steps."
        )
    if operator.index(save_freq) < 1:
        raise ValueError(
            f"Received save_freq={save_freq}, expected at least 1 step."
        )
    if epochs is not None:
        raise ValueError(
            f"Received save_freq={save_freq} and epochs={epochs!r}, expected "
            "one of them: `epochs` selects among the ends of epochs."
        )
    return operator.index(save_freq)


def _epoch_filter(epochs) -> Callable[[int, dict], bool]:
    """The argument `epochs` as a function of the epoch and its logs."""
    if epochs is None:
        return lambda epoch, logs: True
    if callable(epochs):
        return lambda epoch, logs: bool(epochs(epoch, logs))
    is_count = hasattr(epochs, "__index__") and not np.ndim(epochs)
    values = [epochs] if is_count else epochs
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(
            f"Received epochs={epochs!r}, expected None, a number, numbers, "
            "or a callable (epoch, logs) -> bool."
        )
    numbers = list(values)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in numbers):
        raise TypeError(f"Received epochs={epochs!r}, expected whole numbers.")
    if not numbers or any(n < 1 for n in numbers):
        raise ValueError(
            f"Received epochs={epochs!r}, expected numbers from 1 on: epochs "
            "are counted from 1."
        )
    if is_count:
        return lambda epoch, logs: epoch % numbers[0] == 0
    return lambda epoch, logs: epoch in numbers
