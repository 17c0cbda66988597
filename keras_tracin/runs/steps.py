"""Watching `model.fit` for the updates of its optimizers, and their rates.

A *step* is an update that an optimizer applied. Where several optimizers
update different variables one after another, this is one step.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.models.state import layers_with_losses
from keras_tracin.runs.updates import NotedUpdates

_TWIN = "_keras_tracin_recording"  # where a train function keeps its own


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps in order: what each updated, and at which rate.

    Attributes:
        rates: float64 `[num_steps, k]`: the rate at which each set of
            variables was updated, 0 in a step that did not update it.
        updated: `k` sets of variables, as positions in `model.weights`. Those
            that one step updates have none in common.
        weighted: whether some of their batches had weights of the examples.
        added_losses: the layers that added losses from their inputs.
    """

    rates: np.ndarray
    updated: tuple[tuple[int, ...], ...]
    weighted: bool
    added_losses: tuple[str, ...]

    @property
    def learning_rates(self) -> np.ndarray:
        """float64 `[num_steps]`: the largest rate of each step."""
        return self.rates.max(axis=1, initial=0.0)


class StepLog:
    """The updates of a model's optimizers since the last write.

    Args:
        before_first: called with the iterator of the first batch, before it.
        locate: turns positions of variables in the trained model's weights
            into those to note; none of what is not to be.

    Attributes:
        function: the train function that reports updates, or None.
        num_steps: number of steps that were reported.
        has_weights: whether some batch had weights of its examples.
        added_losses: the layers that added losses from their inputs.
    """

    def __init__(
        self,
        before_first: Callable[[Any], None],
        locate: Callable[[tuple[int, ...]], tuple[int, ...]] = tuple,
    ):
        self._locate = locate
        self._before_first: Callable[[Any], None] | None = before_first
        self.function: RecordingTrainFunction | None = None
        self.num_steps = 0
        self.has_weights = False
        self.added_losses: tuple[str, ...] = ()
        self._updated: list[tuple[int, ...]] = []
        self._events: list[tuple[np.ndarray, ...]] = []
        self._last_step: set[int] = set()  # the sets that it updated

    def prepare(self, iterator) -> None:
        """Calls `before_first(iterator)`, but only the first time."""
        # Taken off before the call: if it fails, later fits are unaffected.
        before_first, self._before_first = self._before_first, None
        if before_first is not None:
            before_first(iterator)

    def catch_up(self, num_steps: int = 0) -> None:
        """Reads unreported updates, if there may be this many steps by now."""
        function = self.function
        if function and self.num_steps + function.num_possible >= num_steps:
            function.tell()

    def add(
        self,
        sources: np.ndarray,
        rates: np.ndarray,
        positions: Sequence[tuple[int, ...]],
    ) -> None:
        """Adds updates, in order.

        Args:
            sources: int `[n]`, indices into `positions` of what each updated.
            rates: `[n]`, the learning rates.
            positions: sets of variables, as positions in `model.weights`.
        """
        located = [self._locate(variables) for variables in positions]
        noted = np.array([bool(variables) for variables in located])[sources]
        if not noted.any():
            return
        for variables in located:
            if variables and variables not in self._updated:
                self._updated.append(variables)
        indices = [self._updated.index(p) if p else -1 for p in located]
        sets, rates = np.array(indices)[sources[noted]], rates[noted]
        self._events.append((self._steps_of(sets), sets, rates))

    def _steps_of(self, sets: np.ndarray) -> np.ndarray:
        """The step that each update belongs to, `[n]`."""
        steps = np.empty(len(sets), np.int64)
        variables = [frozenset(positions) for positions in self._updated]
        for place, current in enumerate(sets.tolist()):
            # A variable that is updated twice belongs to two steps.
            if not self.num_steps or any(
                variables[current] & variables[other]
                for other in self._last_step
            ):
                self.num_steps += 1
                self._last_step = set()
            self._last_step.add(current)
            steps[place] = self.num_steps - 1
        return steps

    def take(self) -> Steps:
        """Returns the steps so far, and empties the log."""
        self.catch_up()
        rates = np.zeros([self.num_steps, len(self._updated)])
        for steps, sets, values in self._events:
            rates[steps, sets] = values
        taken = Steps(
            rates, tuple(self._updated), self.has_weights, self.added_losses
        )
        self._updated, self._events, self._last_step = [], [], set()
        self.num_steps, self.has_weights = 0, False
        return taken


class RecordingTrainFunction:
    """A model's `train_function` whose steps note the updates they make.

    It is a twin of the model's own, traced anew with the notes in it, so the
    own is as it was when it comes back.

    The logs are held weakly: those of a `fit` that ended in an exception go
    away with their callback. Of those whose callback is kept, the next `fit`
    tells by its `model.history`, which is another.

    Attributes:
        train_function: the model's own; None if it has none yet.
    """

    def __init__(self, model: keras.Model):
        self.train_function = model.train_function
        self._model = model
        self._logs: list[weakref.ref[StepLog]] = []
        self._history: Any = None
        self._twin: Callable | None = None
        self._noted: NotedUpdates | None = None
        self._is_first = True
        self._calls = 0  # since the logs were told
        self._per_call = 0  # more updates than this a call did not make
        self._added_losses: tuple[str, ...] = ()

    def __call__(self, iterator):
        if not self.logs or self._is_of_another_fit():
            self.stop()
            self._model.make_train_function()
            return self._model.train_function(iterator)
        for log in self.logs:
            log.prepare(iterator)
        if self._is_first:
            self._begin()
        assert self._noted is not None
        assert self._twin is not None
        traced = self._noted.num_traced
        with self._noted.inside():
            result = self._twin(self._watch(iterator))
        self._calls += 1
        # Seen at once: what cannot be noted, and how many there are of one.
        unknown = self._is_first or self._noted.num_traced > traced
        if self._noted.num_traced > traced:
            layers = layers_with_losses(self._model)
            self._added_losses = tuple(x.path or x.name for x in layers)
        for log in self.logs if unknown else ():
            log.added_losses = self._added_losses
        if unknown or 2 * self.num_possible > self._noted.capacity:
            self.tell()
        self._is_first = False
        return result

    def _watch(self, iterator: Any) -> Any:
        """Returns the iterator; tells the logs whether batches have weights."""
        spec = getattr(iterator, "element_spec", None)
        if spec is not None:
            self._note_weights(spec)
            return iterator
        return map(self._note_weights, iterator)  # that of train_on_batch

    def _note_weights(self, batch: Any) -> Any:
        """Returns the batch, or the type of batches, that it looked at."""
        *_, weights = keras.utils.unpack_x_y_sample_weight(batch)
        absent = weights is None or isinstance(weights, tf.OptionalSpec)
        for log in self.logs:
            log.has_weights |= not absent
        return batch

    @property
    def num_possible(self) -> int:
        """Upper bound of the number of updates that no log was told of."""
        if self._noted is None:
            return 0
        traced = self._noted.steps_per_call * self._noted.num_traced
        per_call = max(traced, self._per_call)
        return self._calls * per_call + self._noted.num_made

    @property
    def logs(self) -> list[StepLog]:
        """The logs that still exist."""
        logs = [reference() for reference in self._logs]
        return [log for log in logs if log is not None]

    def start(self, log: StepLog) -> None:
        """Tells this log too of updates from now on."""
        if self._is_of_another_fit():
            self._logs.clear()
        if not self.logs:
            self._history = _history(self._model)
            self._is_first = True
        if log not in self.logs:
            self._logs.append(weakref.ref(log, self._forget))
        log.function = self
        if self._noted is not None:
            self._noted.join()

    def stop(self, log: StepLog | None = None) -> None:
        """Tells this log of no more updates, or none of them."""
        for other in self.logs:
            if log in (None, other):
                other.function = None
        self._logs = [
            reference
            for reference in self._logs
            if log is not None and reference() is not log
        ]
        if not self.logs:
            if self._noted is not None:
                self._noted.end()
            if self._model.train_function is self:
                self._model.train_function = self.train_function

    def tell(self) -> None:
        """Reads the updates since the last time, and tells the logs."""
        if self._noted is None:
            return
        possible = self.num_possible
        sources, rates = self._noted.take(self._is_first)
        if len(sources) > possible:  # It makes them in a loop.
            self._per_call = len(sources)
        self._calls = 0
        for log in self.logs:
            log.add(sources, rates, self._noted.sources)

    def fits(self, model: keras.Model) -> bool:
        """Whether it can go on being the twin of this model's own."""
        return self._model is model and (
            self._noted is None or self._noted.fits()
        )

    def _begin(self) -> None:
        if self._noted is None:
            steps = self._model.steps_per_execution
            self._noted = NotedUpdates(self._model, steps)
            self._twin = _untraced(self._model, self.train_function)
        self._noted.begin()
        self._calls = 0

    def _is_of_another_fit(self) -> bool:
        return _history(self._model) is not self._history

    def _forget(self, reference) -> None:
        self._logs.remove(reference)
        if not self.logs:
            self.stop()


def _history(model: keras.Model) -> Any:
    """The object that `fit` replaces each time that it begins."""
    return getattr(model, "history", None)


def _untraced(model: keras.Model, own: Callable | None) -> Callable:
    """A train function like the model's own, that was never traced."""
    before, model.train_function = model.train_function, None
    try:
        model.make_train_function()
        twin = model.train_function
    finally:
        model.train_function = before
    names = [getattr(f, "__qualname__", None) for f in (own, twin)]
    # Somebody else put theirs there, that does more.
    return twin if own is None or names[0] == names[1] else own


def record_steps(model: keras.Model, log: StepLog) -> None:
    """Tells `log` of each step that `model.fit` makes from now on."""
    function = model.train_function
    if not isinstance(function, RecordingTrainFunction):
        own = function
        function = getattr(own, _TWIN, None)
        if function is None or not function.fits(model):
            function = RecordingTrainFunction(model)
            if hasattr(own, "__dict__"):
                # Kept for the next fit, which need not trace it again.
                setattr(own, _TWIN, function)
        model.train_function = function
    former = log.function
    if former is not None and former is not function:
        # Another callback compiled the model, or made its function anew.
        former.tell()
        logs = former.logs
        former.stop()
        for other in logs:
            function.start(other)
    function.start(log)


def stop_recording(log: StepLog) -> None:
    """Tells the log of no more steps: undoes `record_steps`."""
    if log.function is not None:
        log.function.stop(log)
