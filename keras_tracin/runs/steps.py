"""Watching `model.fit` for the updates of its optimizer, and their rates."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf


@dataclass
class _Span:
    """Batches `start` to `stop` by the optimizer's raw counter.

    With gradient accumulation, only the last of `every` batches is an update.
    A schedule gives the rate of that update at the raw count.
    """

    source: float | Callable
    every: int
    start: int
    stop: int

    def counts_of_updates(self) -> np.ndarray:
        updates = np.arange(self.start // self.every, self.stop // self.every)
        return (updates + 1) * self.every - 1


class StepLog:
    """The optimizer's updates since the last write, and their rates.

    They are kept as spans of the optimizer's raw counter in which the rate has
    one source: a number, or a schedule that is evaluated later, at all counts
    at once.
    """

    def __init__(self, before_first: Callable[[Any], None]):
        self._before_first: Callable[[Any], None] | None = before_first
        self._spans: list[_Span] = []
        self._evaluate: dict[int, Callable] = {}
        self.last_count: int | None = None
        self.num_steps = 0

    def prepare(self, iterator) -> None:
        """Calls `before_first(iterator)`, but only the first time."""
        # Taken off before the call: if it fails, later fits are unaffected.
        before_first, self._before_first = self._before_first, None
        if before_first is not None:
            before_first(iterator)

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
        last = self._spans[-1] if self._spans else None
        if last and (last.source, last.every, last.stop) == (
            source,
            every,
            start,
        ):
            last.stop = stop
        else:
            self._spans.append(_Span(source, every, start, stop))

    def take_learning_rates(self, *, eagerly: bool) -> np.ndarray:
        """The rates as float64 `[num_steps]`; the log is empty afterwards."""
        parts = [np.empty(0)]
        for span in self._spans:
            counts = span.counts_of_updates()
            if isinstance(span.source, float):
                parts.append(np.full(len(counts), span.source))
            elif eagerly:
                rates = [_number(span.source(count)) for count in counts]
                parts.append(np.array(rates))
            else:
                parts.append(self._compiled(span.source)(counts).numpy())
        self._spans.clear()
        self.num_steps = 0
        return np.concatenate(parts)

    def _compiled(self, schedule) -> Callable:
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


class RecordingTrainFunction:
    """A model's `train_function` that logs the updates which each call makes.

    The counter and the rate are read right before and after the call, because
    other callbacks change the rate at either end of a batch.

    The logs are held weakly: those of a `fit` that ended in an exception go
    away with their callback, and so one wrapper is enough for any number.
    """

    def __init__(self, model: keras.Model):
        self.train_function = model.train_function
        self.logs: weakref.WeakSet[StepLog] = weakref.WeakSet()
        self._model = model

    def __call__(self, iterator):
        if not self.logs:
            return self.train_function(iterator)
        for log in self.logs:
            log.prepare(iterator)
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


def record_steps(model: keras.Model, log: StepLog) -> None:
    """From now on, `log` is told of each step that `model.fit` makes."""
    if not isinstance(model.train_function, RecordingTrainFunction):
        model.train_function = RecordingTrainFunction(model)
        log.last_count = None
    model.train_function.logs.add(log)


def stop_recording(model: keras.Model, log: StepLog) -> None:
    """The opposite of `record_steps`."""
    function = model.train_function
    if isinstance(function, RecordingTrainFunction):
        function.logs.discard(log)
        if not function.logs:
            model.train_function = function.train_function


def next_rate(model: keras.Model) -> float:
    """The learning rate of the update that the next batch makes."""
    optimizer = _updating_optimizer(model)
    source = _rate_source(optimizer)
    if isinstance(source, float):
        return source
    return _number(source(_count(optimizer)))


def num_updates(model: keras.Model) -> int:
    """How many updates the model's optimizer has made."""
    optimizer = _updating_optimizer(model)
    return _count(optimizer) // (optimizer.gradient_accumulation_steps or 1)


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
