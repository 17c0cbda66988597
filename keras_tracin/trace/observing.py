"""Runs `model.fit` with an observer of every step.

Synopsis:

    history = fit_with_observer(
        model, batches, observer, recording, epochs=3)

The observer is called with each batch before the step, at w_t, and again after
it; it then returns the row of the step. It packs the rows of an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_tracin.models.kinds import check_is_model
from keras_tracin.runs.present_rate import num_batches, rate_at
from keras_tracin.runs.save_options import scalar_metrics
from keras_tracin.trace.batches import TrainingBatches
from keras_tracin.trace.recording import Recording


class Observer(Protocol):
    """Measures steps of a training."""

    def before(self, ids: np.ndarray, data: Any, rate: float) -> Any:
        """Measures at w_t, before the step, and leaves the model unchanged."""

    def after(self, measurements: Any, stepped: bool) -> dict[str, Any]:
        """Measures at w_{t+1}; returns the row of the step.

        Args:
            measurements: result of `before`.
            stepped: False if loss scaling skipped the step.
        """

    def saves_after(self, step: int) -> bool:
        """Whether to save the weights after this step of the training."""

    def is_full(self, rows: list[dict[str, Any]]) -> bool:
        """Whether to write the rows now, to limit memory."""

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """Packs rows into arrays, one of which is `learning_rate`."""


def fit_with_observer(
    model: keras.Model,
    batches: TrainingBatches,
    observer: Observer,
    recording: Recording,
    *,
    epochs: int,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = 0,
) -> keras.callbacks.History:
    """Trains on from the last recorded epoch; returns the history of `fit`."""
    callback = _ObserverCallback(batches, observer, recording)
    try:
        return model.fit(
            batches.dataset(),
            epochs=epochs,
            initial_epoch=recording.num_epochs,
            class_weight=class_weight,
            callbacks=[callback, *callbacks],
            verbose=verbose,
            shuffle=False,  # the batches are shuffled
        )
    finally:
        model.train_function = None  # Keras creates it anew.


def check_observable(model: keras.Model) -> None:
    """Raises ValueError unless each batch makes one update.

    Raises:
        TypeError: if it is no model of Keras 3.
    """
    check_is_model(model)
    if not model.built or model.optimizer is None:
        raise ValueError(
            "Tracing needs the weights before the first step. Received "
            "a model that is not built or not compiled; call it on a batch of "
            "data and compile it first."
        )
    if model.steps_per_execution != 1:
        raise ValueError(
            "Tracing measures every step. Received a model compiled "
            f"with steps_per_execution={model.steps_per_execution}; compile "
            "it with steps_per_execution=1."
        )
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas > 1:
        raise ValueError(
            "Tracing needs the whole of each batch on one device. Received a "
            f"model built under a strategy of {replicas} replicas; build it "
            "outside of the strategy."
        )
    every = model.optimizer.gradient_accumulation_steps
    if every not in (None, 1):
        raise ValueError(
            "Tracing needs each batch to be one update. Received an "
            f"optimizer with gradient_accumulation_steps={every}; leave it "
            f"out, with a batch size {every} times as large."
        )


def check_finite(
    values: Any, ids: np.ndarray, what: str = "the gradients of examples"
) -> None:
    """Raises ValueError naming the ids whose values are NaN or infinite.

    Args:
        values: values `[n, ...]`.
        ids: ids `[n]`.
        what: description of the values, for the error.
    """
    rows = np.isfinite(np.asarray(values)).reshape(len(ids), -1).all(axis=1)
    if not rows.all():
        raise ValueError(
            f"Training has diverged: {what} with ids "
            f"{ids[~rows][:5].tolist()} are NaN or infinite. What was recorded "
            "of earlier epochs is intact; lower the learning rate, or look "
            "at these examples."
        )


class _ObserverCallback(keras.callbacks.Callback):
    """Calls the observer around every call of the train function."""

    def __init__(self, batches: TrainingBatches, observer: Observer, recording):
        super().__init__()
        self._batches, self._observer = batches, observer
        self._recording = recording
        self._rows: list[dict[str, Any]] = []
        self._epoch = 0

    def on_train_begin(self, logs=None):
        inner = self.model.train_function

        def train_function(iterator):
            return self._step(inner, iterator)

        self.model.train_function = train_function

    def on_epoch_begin(self, epoch, logs=None):
        self._rows, self._epoch = [], epoch
        self._batches.start_epoch(epoch)

    def on_epoch_end(self, epoch, logs=None):
        if self._rows:
            self._write(scalar_metrics(logs or {}), save_weights=True)

    def _step(self, inner, iterator):
        batch = self._batches.peek()
        if batch is None:
            return inner(iterator)  # raises the end of the epoch
        # Each batch is one update: `check_observable`.
        count = num_batches(self.model)
        rate = rate_at(self.model, count)
        measurements = self._observer.before(*batch, rate)
        result = inner(iterator)
        self._batches.advance()
        stepped = num_batches(self.model) > count
        self._check_rate(rate, rate_at(self.model, count), stepped)
        row = self._observer.after(measurements, stepped)
        row["learning_rate"] = rate if stepped else 0.0
        row["ids"] = batch[0]
        self._rows.append(row)
        step = self._recording.num_steps + len(self._rows)
        saves = self._observer.saves_after(step)
        # After the last batch, `on_epoch_end` writes.
        has_more = self._batches.peek() is not None
        if has_more and (saves or self._observer.is_full(self._rows)):
            self._write(None, saves)
        return result

    def _check_rate(self, before: float, after: float, stepped: bool) -> None:
        """Raises ValueError if the step itself has changed its rate."""
        if stepped and before != after:
            raise ValueError(
                f"The learning rate changed from {before} to {after} while the "
                "train function ran, so the estimate for the step used "
                "another rate than the step. Set it with a "
                "LearningRateSchedule or from a callback, not in train_step."
            )

    def _write(self, logs: dict[str, float] | None, save_weights: bool) -> None:
        arrays = self._observer.pack(self._rows)
        self._recording.append(arrays, self._epoch + 1, logs, save_weights)
        self._rows = []
