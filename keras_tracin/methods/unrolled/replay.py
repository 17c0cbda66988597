"""The replay of a recorded training: forwards, checked, and then backwards.

On the way back the states are needed in reverse order. Some are kept, and those
between two of them are computed again, in the same manner if they are too many
to be held: with room for √T states, T steps are made twice (Griewank 1992).

Synopsis:

    replay = Replay(training, steps, held, start, first=0, room=100)
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

# States that are kept, each with the number of the step that follows it.
_Kept = list[tuple[int, State]]


class Replay:
    """The states of a training, from its first step to its last.

    Args:
        training: makes one step of it.
        steps: its learning rates and batches.
        held: the training examples.
        start: the state before the first step.
        first: number of updates that the optimizer had made before.
        room: number of states that may be held at a time, at least two.

    Attributes:
        training: makes one step of it.
        start: the state before the first step.
        last: the state after the last step, once `check` has reached it.
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
        self._first, self._room = first, max(2, room)
        self._kept: _Kept = [(0, start)]
        self.start = self.last = start

    @property
    def holds_all(self) -> bool:
        """Whether all states are held, so that no step is made twice."""
        return len(self._steps) <= self._room

    def inputs(self, number: int) -> tuple[Any, tf.Tensor, tf.Tensor]:
        """The data, rate and update number of step `number`, from 0."""
        return (
            self._held.take(self._steps.rows[number]).data,
            tf.constant(self._steps.rates[number], tf.float64),
            tf.constant(self._first + number, tf.int64),
        )

    def check(
        self,
        model: keras.Model,
        run: TrainingRun,
        tolerance: float,
        hint: str = "",
    ) -> float:
        """Makes all steps, and compares the weights with the recorded ones.

        Args:
            model: it is lent the recorded weights, and gets its own back.
            run: the checkpoints to compare with.
            tolerance: largest allowed length of the difference at a
                checkpoint, as a share of the distance that training covered
                since the checkpoint before.
            hint: a likely reason for a larger one, if there is one.

        Returns:
            The largest of these shares.

        Raises:
            ValueError: at the first checkpoint that exceeds `tolerance`.
        """
        recorded = {checkpoint.step: checkpoint for checkpoint in run}
        worst, before = 0.0, _arrays(self.start.weights)

        def compare(number: int, state: State) -> None:
            nonlocal worst, before
            if number not in recorded:
                return
            expected = _recorded_weights(model, recorded[number])
            error = _ratio(_arrays(state.weights), expected, before)
            if not error <= tolerance:
                raise ValueError(
                    _mismatch(model, recorded[number], error, state, expected)
                    + hint
                )
            worst, before = max(worst, error), expected

        self._kept = self._forwards(0, self.start, len(self._steps), compare)
        return worst

    def end(self, counts: np.ndarray) -> State:
        """The last state, had each example's loss been multiplied by its count.

        Args:
            counts: `[n]`, in reading order.
        """
        state = self.start
        for number in range(len(self._steps)):
            state = self.advance(number, state, counts)
        return state

    def backwards(self) -> Iterator[tuple[int, State]]:
        """Each step's number and the state before it, the last step first."""
        ends = [start for start, _ in self._kept[1:]] + [len(self._steps)]
        # A copy of the list: states that are done with are let go of.
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
            begin, before = kept.pop()
            yield from self._back(begin, before, ends.pop(), room - len(kept))

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
            end: one more than the number of the last step.
            look: called with each step's number, from 1, and the state after
                it; without it, steps after the last state that is kept are not
                made.
            room: largest number of states to keep; by default this replay's.
        """
        every = _spacing(end - start, room or self._room)
        kept = []
        for number in range(start, end):
            if (number - start) % every == 0:
                kept.append((number, state))
                if look is None and number + every >= end:
                    return kept
            state = self.advance(number, state)
            if look is not None:
                look(number + 1, state)
        self.last = state
        return kept

    def advance(
        self, number: int, state: State, counts: np.ndarray | None = None
    ) -> State:
        """The state after step `number`, from the state before it.

        Args:
            number: the step's number, from 0.
            state: the state before it.
            counts: `[n]`, as in `end`; all 1 by default.
        """
        data, rate, update = self.inputs(number)
        rows = self._steps.rows[number]
        own = np.ones(len(rows)) if counts is None else counts[rows]
        own = tf.constant(own, state.weights[0].dtype)
        return self.training.forward(state, data, own, rate, update)


def _spacing(count: int, room: int) -> int:
    """The number of steps from one state that is kept to the next.

    All states are kept where there is room; else √T of them, or fewer, so that
    there is room for those between two of them as well.
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


def _ratio(received, expected, before) -> float:
    """‖received − expected‖ / ‖expected − before‖."""
    gap = _squared_distance(received, expected)
    way = _squared_distance(expected, before)
    if gap == 0.0:
        return 0.0
    return math.sqrt(gap / way) if way else math.inf


def _squared_distance(first, second) -> float:
    pairs = zip(first, second, strict=True)
    return sum(float(np.sum((a - b) ** 2)) for a, b in pairs)


def _mismatch(model, checkpoint, error, state: State, expected) -> str:
    pairs = zip(state.weights, expected, strict=True)
    gaps = [np.abs(a - b).max() for a, b in pairs]
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
