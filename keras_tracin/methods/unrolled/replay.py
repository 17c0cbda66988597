"""A recorded training made again: forwards, checked, and then backwards.

The states on the way back are needed in reverse. Some are kept, and those
between two of them are computed again, in the same manner if they are too many
to be held: with room for √T states, T steps are made twice (Griewank 1992).

Synopsis:

    replay = Replay(training, steps, held, start, room=100)
    replay.check(model, run, tolerance=1e-3)
    for number, state in replay.backwards():
        training.backward(state, *replay.inputs(number), adjoint)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.held import HeldExamples
from keras_tracin.methods.unrolled.batches import Steps
from keras_tracin.methods.unrolled.training import State, Training
from keras_tracin.runs import Checkpoint, TrainingRun, run_weights

_Kept = list[tuple[int, State]]


class Replay:
    """The states of a training, from its first step to its last.

    Args:
        training: one step of it.
        steps: its rates and batches.
        held: its examples.
        start: the state before the first step.
        first: how many updates the optimizer had made before.
        room: how many states may be held at a time, two or more.

    Attributes:
        training: one step of it.
        last: the state after the last step; once `check` has been there.
    """

    def __init__(
        self,
        training: Training,
        steps: Steps,
        held: HeldExamples,
        start: State,
        first: int,
        room: int,
    ):
        self.training, self._steps, self._held = training, steps, held
        self._start, self._first, self._room = start, first, max(2, room)
        self._kept: _Kept = [(0, start)]
        self.last: State = start

    def inputs(self, number: int) -> tuple[Any, tf.Tensor, tf.Tensor]:
        """What step `number`, from 0, is made of: data, rate, number."""
        return (
            self._held.take(self._steps.rows[number]).data,
            tf.constant(self._steps.rates[number], tf.float64),
            tf.constant(self._first + number, tf.int64),
        )

    def check(
        self, model: keras.Model, run: TrainingRun, tolerance: float
    ) -> float:
        """Makes all steps, and compares with the weights recorded on the way.

        Args:
            model: it is lent the recorded weights, and gets its own back.
            run: the checkpoints to compare with.
            tolerance: what is allowed of the difference's length, beside that
                of the way from one checkpoint to the next.

        Returns:
            The largest of these ratios.

        Raises:
            ValueError: at the first checkpoint where it is exceeded.
        """
        recorded = {checkpoint.step: checkpoint for checkpoint in run}
        worst, before = 0.0, _arrays(self._start.weights)

        def look(number: int, state: State) -> None:
            nonlocal worst, before
            if number not in recorded:
                return
            expected = _recorded_weights(model, recorded[number])
            error = _ratio(_arrays(state.weights), expected, before)
            if not error <= tolerance:
                raise ValueError(
                    _mismatch(model, recorded[number], error, state, expected)
                )
            worst, before = max(worst, error), expected

        self._kept = self._forwards(0, self._start, len(self._steps), look)
        return worst

    def end(self, counts: np.ndarray) -> State:
        """The last state, were the examples to count `counts [n]`."""
        state = self._start
        for number in range(len(self._steps)):
            state = self._step(number, state, counts)
        return state

    def backwards(self) -> Iterator[tuple[int, State]]:
        """Each step's number and the state before it, the last step first."""
        ends = [start for start, _ in self._kept[1:]] + [len(self._steps)]
        # Its own copy: what is done with is let go of.
        kept = list(zip(self._kept, ends, strict=True))
        for (start, state), end in reversed(kept):
            yield from self._back(start, state, end, self._room - len(kept))

    def _back(
        self, start: int, state: State, end: int, room: int
    ) -> Iterator[tuple[int, State]]:
        if end - start == 1:
            yield start, state
            return
        kept = self._forwards(start, state, end, room=max(2, room))
        ends = [begin for begin, _ in kept[1:]] + [end]
        while kept:
            begin, found = kept.pop()
            yield from self._back(begin, found, ends.pop(), room - len(kept))

    def _forwards(
        self,
        start: int,
        state: State,
        end: int,
        look: Callable[[int, State], None] | None = None,
        room: int | None = None,
    ) -> _Kept:
        """Makes steps and keeps some of the states before them.

        Args:
            start: the number of the first step.
            state: the state before it.
            end: the number of the first step not to be made.
            look: is shown each state after a step; without it, steps after
                the last state that is kept are not made.
            room: how many states to keep, at most; by default this replay's.
        """
        every = _spacing(end - start, room or self._room)
        kept = []
        for number in range(start, end):
            if (number - start) % every == 0:
                kept.append((number, state))
                if look is None and number + every >= end:
                    return kept
            state = self._step(number, state)
            if look is not None:
                look(number + 1, state)
        self.last = state
        return kept

    def _step(self, number: int, state: State, counts=None) -> State:
        data, rate, at = self.inputs(number)
        rows = self._steps.rows[number]
        known = np.ones(len(rows)) if counts is None else counts[rows]
        known = tf.constant(known, state.weights[0].dtype)
        return self.training.forward(state, data, known, rate, at)


def _spacing(count: int, room: int) -> int:
    """How many steps lie between two states that are kept.

    All are kept where there is room; else √T of them, or fewer, so that there
    is room for those between two of them as well.
    """
    if count <= room:
        return 1
    return math.ceil(count / max(2, min(math.isqrt(count), room // 2)))


def _arrays(weights: Sequence[tf.Tensor]) -> list[np.ndarray]:
    return [np.asarray(weight, np.float64) for weight in weights]


def _recorded_weights(
    model: keras.Model, checkpoint: Checkpoint
) -> list[np.ndarray]:
    with run_weights(model) as load:
        load(checkpoint)
        return _arrays([v.value for v in model.trainable_variables])


def _ratio(found, expected, before) -> float:
    """How long `found - expected` is, beside `expected - before`."""
    gap = sum(float(np.sum((a - b) ** 2)) for a, b in _pairs(found, expected))
    way = sum(float(np.sum((a - b) ** 2)) for a, b in _pairs(expected, before))
    if gap == 0.0:
        return 0.0
    return math.sqrt(gap / way) if way else math.inf


def _pairs(one, other):
    return zip(one, other, strict=True)


def _mismatch(model, checkpoint, error, state: State, expected) -> str:
    gaps = [np.abs(a - b).max() for a, b in _pairs(state.weights, expected)]
    worst = int(np.argmax(gaps))
    name = model.trainable_variables[worst].path
    return (
        "The training that is replayed is not the one that was recorded: after "
        f"step {checkpoint.step} (epoch {checkpoint.epoch}) its weights differ "
        f"from those in {checkpoint.path} by {error:.2g} of the way that "
        f"training went since the checkpoint before, most in '{name}' (by "
        f"{gaps[worst]:.2g}). Pass the data and batches it was trained on, in "
        "that order, with the same `class_weight`, and a model compiled with "
        "the same loss and optimizer; recorded with seeds, if it has Dropout. "
        "Training that is not deterministic needs a larger `tolerance`."
    )
