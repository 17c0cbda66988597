"""`model.fit` with somebody looking on at every step.

Synopsis:

    history = watched_fit(model, source, observer, recording, epochs=3)

An observer is told of each batch before the step, at w_t, and again after it;
what it returns then is the step's row. It packs the rows of an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from keras_tracin.runs.present_rate import num_batches, rate_at
from keras_tracin.trace.recording import Recording
from keras_tracin.trace.source import Source


class Observer(Protocol):
    """Who looks on."""

    def before(self, ids: np.ndarray, data: Any, rate: float) -> Any:
        """At w_t, before the step; the model is to be left as it is."""

    def after(self, seen: Any, stepped: bool) -> dict[str, Any]:
        """At w_{t+1}; `stepped` is False where loss scaling left it out."""

    def saves_after(self, step: int) -> bool:
        """Whether the weights after this step of the training are kept."""

    def is_full(self, rows: list[dict[str, Any]]) -> bool:
        """Whether the rows should be written before they take more memory."""

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        """The arrays to record of an epoch, `learning_rate` among them."""


def watched_fit(
    model: keras.Model,
    source: Source,
    observer: Observer,
    recording: Recording,
    *,
    epochs: int,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = 0,
) -> keras.callbacks.History:
    """Trains from the last recorded epoch on, and returns what `fit` does."""
    watcher = _Watcher(source, observer, recording)
    try:
        return model.fit(
            source.dataset(),
            epochs=epochs,
            initial_epoch=recording.done,
            class_weight=class_weight,
            callbacks=[watcher, *callbacks],
            verbose=verbose,
            shuffle=False,  # It is already.
        )
    finally:
        model.train_function = None  # Keras makes it anew.


def check_can_be_watched(model: keras.Model) -> None:
    """Raises ValueError unless each batch will be one update."""
    if not model.built or model.optimizer is None:
        raise ValueError(
            "Tracing needs the weights before the first step. Received "
            "a model that is not built or not compiled; call it on a batch of "
            "data and compile it first."
        )
    if model.steps_per_execution != 1:
        raise ValueError(
            "Tracing looks at each step. Received a model compiled "
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
    """Raises ValueError naming the ids whose rows are not all numbers.

    Args:
        values: `[n, ...]`.
        ids: `[n]`.
        what: what the values are.
    """
    rows = np.isfinite(np.asarray(values)).reshape(len(ids), -1).all(axis=1)
    if not rows.all():
        raise ValueError(
            f"Training has diverged: {what} with ids "
            f"{ids[~rows][:5].tolist()} are NaN or infinite. What was recorded "
            "of earlier epochs is intact; lower the learning rate, or look "
            "at these examples."
        )


class _Watcher(keras.callbacks.Callback):
    """Stands around the train function and tells the observer."""

    def __init__(self, source: Source, observer: Observer, recording):
        super().__init__()
        self._source, self._observer = source, observer
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
        self._source.begin(epoch)

    def on_epoch_end(self, epoch, logs=None):
        if self._rows:
            self._write(_scalars(logs or {}), save_weights=True)

    def _step(self, inner, iterator):
        batch = self._source.peek()
        if batch is None:
            return inner(iterator)  # It ends the epoch.
        # Each batch is one update: `check_can_be_watched`.
        count = num_batches(self.model)
        rate = rate_at(self.model, count)
        seen = self._observer.before(*batch, rate)
        result = inner(iterator)
        self._source.advance()
        stepped = num_batches(self.model) > count
        self._check_rate(rate, rate_at(self.model, count), stepped)
        row = self._observer.after(seen, stepped)
        row["learning_rate"] = rate if stepped else 0.0
        row["ids"] = batch[0]
        self._rows.append(row)
        step = self._recording.num_steps + len(self._rows)
        saves = self._observer.saves_after(step)
        # After the last batch the end of the epoch does it.
        more = self._source.peek() is not None
        if more and (saves or self._observer.is_full(self._rows)):
            self._write(None, saves)
        return result

    def _check_rate(self, before: float, after: float, stepped: bool) -> None:
        """Raises ValueError if the step itself has changed its rate."""
        if stepped and before != after:
            raise ValueError(
                f"The learning rate went from {before} to {after} while the "
                "train function ran, so what was expected of the step was "
                "computed with another rate than it had. Set it with a "
                "LearningRateSchedule or from a callback, not in train_step."
            )

    def _write(self, logs: dict[str, float] | None, save_weights: bool) -> None:
        arrays = self._observer.pack(self._rows)
        self._recording.append(arrays, self._epoch + 1, logs, save_weights)
        self._rows = []


def _scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are single numbers."""
    return {k: float(v) for k, v in logs.items() if np.ndim(v) == 0}
