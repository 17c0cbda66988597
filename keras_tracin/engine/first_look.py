"""A first look at a method's gradients, before anything is made of them.

At one checkpoint a few examples go through the compiled step together and each
alone, where their gradients should be the same; and the gradients are held
against plain TensorFlow: one tape over all trainable variables, for one example
and, where the step tells gradients apart by variable, for all. What disagrees
more than rounding explains is looked into, slowly, until it has a name.

Synopsis:

    complaint = FirstLook(functions, batch).complaint()
    if complaint is not None:
        raise ValueError(complaint)
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.rounding import NOISE, is_learnt, tolerance_of
from keras_tracin.engine.seen import (
    Seen,
    SeenFactors,
    alike,
    differences,
    has_loops,
    length_of,
    look_at,
    variables_to_check,
)
from keras_tracin.engine.steps import GradientFunctions, batch_spec
from keras_tracin.gradients.interaction import find_interaction
from keras_tracin.gradients.plain import PlainGradient, perturb_weights
from keras_tracin.gradients.reasons import likely_reason
from keras_tracin.models.state import preserved, value_of

EXAMPLES = 8
_MIXED = (5, 2, 7, 0, 4)  # a batch of another size, in another order


class FirstLook:
    """Compares gradients of a few examples in several ways.

    Args:
        functions: the compiled steps to look at.
        batch: examples, of which the first eight are used.
        size: number of examples in all batches that the step is given, where
            it is compiled anew for each size; None where any will do.
        role: "training" or "query".
    """

    def __init__(
        self,
        functions: GradientFunctions,
        batch: Batch,
        size: int | None = None,
        role: str = "training",
    ):
        self._functions, self._size, self._role = functions, size, role
        count = min(len(batch), EXAMPLES)
        self._count = count
        self._ids = batch.ids[:count]
        self._data = tf.nest.map_structure(
            lambda leaf: tf.convert_to_tensor(leaf[:count]), batch.data
        )
        self._tolerance = tolerance_of(functions.model)

    def complaint(self) -> str | None:
        """The mistake in words; None if there is none.

        A model that draws random numbers in inference mode is warned of.
        """
        with preserved(self._functions.model) as self._state:
            seen = self._look()
            if seen is None:
                return None
            model, loss = self._functions.model, self._functions.loss
            interaction = find_interaction(model, loss, self._data)
            if interaction is not None and interaction.is_random:
                warnings.warn(str(interaction), stacklevel=2)
                return None
            if not seen.is_plain:
                interaction = interaction or find_interaction(
                    model, loss, self._data, [seen.row], backward=True
                )
                return seen.message if interaction is None else str(interaction)
            return seen.message

    def _look(self) -> _Disagreement | None:
        rows = np.arange(self._count)
        together = self._step(rows)
        usable = np.isfinite(together.lengths)
        lengths = np.where(usable, together.lengths, -1.0)
        longest = int(np.argmax(lengths))
        alone = self._step([longest])
        if self._count > 1:
            apart = self._apart(together, longest, alone)
            if apart is not None:
                return apart
        if lengths[longest] <= 0:
            return None
        return self._against_plain(together, longest, alone, usable)

    # Examples alone and in several batches.

    def _apart(
        self, together: Seen, longest: int, alone: Seen
    ) -> _Disagreement | None:
        known, places = [together, alone], [*range(self._count), longest]
        ends = {0, self._count - 1} - {longest}
        mixed = [row for row in _MIXED if row < self._count]
        # Where XLA compiles, each call takes as long as a whole batch.
        more = (
            [[min(ends)]] if self._size else [*([row] for row in ends), mixed]
        )
        for rows in more:
            known.append(self._step(rows))
            places += rows
        marks = together.marks(known)
        scale = np.abs(marks[np.isfinite(marks).all(axis=1)])
        scale = scale.max(axis=0, initial=0)
        for place in range(self._count, len(marks)):
            row = places[place]
            before, again = marks[row], marks[place]
            if not alike(before, again, self._tolerance, scale):
                noise = self._noise_of_marks(row)
                if alike(before, again, 0.0, scale, NOISE * noise):
                    continue
                if self._is_learnt([row]):
                    continue
                return self._mixes(row, before[0], again[0])
        return None

    def _noise_of_marks(self, row: int) -> np.ndarray:
        before = self._step([row])
        with perturb_weights(self._functions.model):
            after = self._step([row])
        marks = before.marks([before, after])
        return np.abs(marks[0] - marks[1])

    def _mixes(self, row: int, together: float, other: float):
        return _Disagreement(
            row,
            "An example's gradient depends on the rest of its batch: for the "
            f"{self._role} example with id {self._ids[row].item()!r} its "
            f"length is {together:.6g} among {self._count}, and {other:.6g} "
            "alone or in another batch, expected the same. Look for what "
            "mixes examples, also on the way back, as `tf.custom_gradient` "
            "may.",
            is_plain=False,
        )

    # Against plain TensorFlow.

    def _against_plain(
        self, together: Seen, row: int, alone: Seen, usable: np.ndarray
    ) -> _Disagreement | None:
        functions = self._functions
        variables = variables_to_check(functions)
        loops = has_loops(functions, together.step)
        gradient = PlainGradient(
            functions.model,
            functions.loss,
            variables,
            batch_spec(self._data) if loops else None,
        )

        def plain(data: Any, counts: Sequence[float]) -> list[tf.Tensor]:
            self._state.restore(seeds_only=True)
            return gradient(data, counts)

        truth = plain(self._rows([row]), [1.0])
        disagreement = self._disagreement(
            alone, truth, lambda: plain(self._rows([row]), [1.0]), [row]
        )
        if disagreement is not None:
            return disagreement
        if self._count < 2 or not together.tells_apart:
            return None
        if not usable.all():
            return None
        everything = [1.0] * self._count
        return self._disagreement(
            together,
            plain(self._data, everything),
            lambda: plain(self._data, everything),
            range(self._count),
        )

    def _disagreement(
        self,
        seen: Seen,
        truth: list[tf.Tensor],
        again: Callable[[], list[tf.Tensor]],
        rows: Sequence[int],
    ) -> _Disagreement | None:
        """A difference from the plain gradient, if more than by rounding."""
        length = length_of(truth)
        if not np.isfinite(length):
            return None
        scale = max(length, float(seen.lengths.sum()))
        if seen.tells_apart:
            error = length_of(differences(seen.totals(self._functions), truth))
        else:
            error = abs(float(seen.lengths[0]) - length)
        if error <= self._tolerance * scale:
            return None
        with perturb_weights(self._functions.model):
            noise = length_of(differences(again(), truth))
        if error <= NOISE * noise or self._is_learnt(rows):
            return None
        return self._explained(truth, rows, error / scale)

    def _explained(
        self, truth: list[tf.Tensor], rows: Sequence[int], share: float
    ) -> _Disagreement:
        functions, model = self._functions, self._functions.model
        variables = variables_to_check(functions)
        indices = list(rows)
        seen = SeenFactors(
            functions.captured(self._rows(indices)), len(indices)
        )
        gaps = differences(seen.totals(functions), truth)
        worst = int(np.argmax([length_of([gap]) for gap in gaps]))
        variable = variables[worst]
        owners = [
            layer
            for layer in model._flatten_layers()
            if any(
                value_of(v) is value_of(variable)
                for v in layer._trainable_variables
            )
        ]
        owner = owners[0] if owners else model
        ids = [self._ids[row].item() for row in indices]
        whose = (
            f"{self._role} example with id {ids[0]!r}"
            if len(ids) == 1
            else f"{self._role} examples with ids {ids} together"
        )
        reason = likely_reason(
            model, functions.loss, self._rows(indices), variable, owner
        )
        return _Disagreement(
            indices[0],
            f"The gradient of the variable '{variable.path}' in layer "
            f"'{owner.path or owner.name}' ({type(owner).__name__}) is not "
            f"what TensorFlow computes: for the {whose}, per-example gradients "
            f"are off by {share:.2g} of their length. Expected those of one "
            f"`tf.GradientTape` over all trainable variables. {reason}",
            is_plain=True,
        )

    def _is_learnt(self, rows: Sequence[int]) -> bool:
        model, loss = self._functions.model, self._functions.loss
        return is_learnt(model, loss, self._data, rows)

    def _step(self, rows: Sequence[int] | np.ndarray) -> Seen:
        """The gradients of some examples, by the compiled step at hand."""
        self._state.restore(seeds_only=True)  # equal draws for equal shapes
        index = np.asarray(rows)
        count = len(index)
        if self._size is not None:
            index = np.resize(index, max(count, self._size))
        data = self._rows(index)
        return look_at(self._functions, data, count)

    def _rows(self, rows: Sequence[int] | np.ndarray) -> Any:
        index = np.asarray(rows)
        return tf.nest.map_structure(
            lambda leaf: tf.gather(leaf, index), self._data
        )


@dataclasses.dataclass(frozen=True)
class _Disagreement:
    """A difference by more than rounding.

    Attributes:
        row: the example where it was seen.
        message: the difference in words.
        is_plain: whether it is one from plain TensorFlow.
    """

    row: int
    message: str
    is_plain: bool
