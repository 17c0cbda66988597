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
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.steps import GradientFunctions, batch_spec
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import Captured, PerExampleLoss
from keras_tracin.gradients.interaction import find_interaction, rounding
from keras_tracin.gradients.plain import PlainGradient, nudged
from keras_tracin.gradients.reasons import likely_reason
from keras_tracin.models.state import preserved, value_of

EXAMPLES = 8
_MIXED = (5, 2, 7, 0, 4)  # a batch of another size, in another order
# A difference of lengths, or of gradients, in units of `rounding`: twice what
# that of a result may be, in a sum of many of them. Of half precision, less:
# what rounding does there is measured.
_UNITS, _UNITS_OF_HALF = 10.0, 3.0
_HALF = 2.0**-6  # of `rounding`, from which on a model is in half precision
NOISE = 6.0  # how many times what rounding does
_FAINT = 1e-2  # of the longest gradient: shorter ones are measured by this
_LEARNT = 16.0  # units in the last place of a loss, below which it is zero


class FirstLook:
    """Compares gradients of a few examples in several ways.

    Args:
        functions: the compiled steps to look at.
        batch: examples, of which the first eight are used.
        size: of all batches that the step is given, where it is compiled
            anew for each; None where any will do.
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
        """What is wrong, in words; None if nothing is.

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
        self, together: _Seen, longest: int, alone: _Seen
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
            one, other = marks[row], marks[place]
            if not _alike(one, other, self._tolerance, scale):
                noise = self._noise_of_marks(row)
                if _alike(one, other, 0.0, scale, NOISE * noise):
                    continue
                if self._is_learnt([row]):
                    continue
                return self._mixes(row, one[0], other[0])
        return None

    def _noise_of_marks(self, row: int) -> np.ndarray:
        before = self._step([row])
        with nudged(self._functions.model):
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
        self, together: _Seen, row: int, alone: _Seen, usable: np.ndarray
    ) -> _Disagreement | None:
        functions = self._functions
        variables = functions.checked_variables
        loops = functions.has_loops(together.step)
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
        found = self._disagreement(
            alone, truth, lambda: plain(self._rows([row]), [1.0]), [row]
        )
        if found is not None or self._count < 2 or not together.tells_apart:
            return found
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
        seen: _Seen,
        truth: list[tf.Tensor],
        again: Callable[[], list[tf.Tensor]],
        rows: Sequence[int],
    ) -> _Disagreement | None:
        """What differs from the plain gradient, if more than by rounding."""
        length = _length(truth)
        if not np.isfinite(length):
            return None
        scale = max(length, float(seen.lengths.sum()))
        if seen.tells_apart:
            error = _length(_differences(seen.totals(self._functions), truth))
        else:
            error = abs(float(seen.lengths[0]) - length)
        if error <= self._tolerance * scale:
            return None
        with nudged(self._functions.model):
            noise = _length(_differences(again(), truth))
        if error <= NOISE * noise or self._is_learnt(rows):
            return None
        return self._explained(truth, rows, error / scale)

    def _explained(
        self, truth: list[tf.Tensor], rows: Sequence[int], share: float
    ) -> _Disagreement:
        functions, model = self._functions, self._functions.model
        variables = functions.checked_variables
        indices = list(rows)
        seen = _Factors(functions.captured(self._rows(indices)), len(indices))
        gaps = _differences(seen.totals(functions), truth)
        worst = int(np.argmax([_length([gap]) for gap in gaps]))
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

    def _step(self, rows: Sequence[int] | np.ndarray) -> _Seen:
        """What the compiled step at hand says of some examples."""
        self._state.restore(seeds_only=True)  # equal draws for equal shapes
        index = np.asarray(rows)
        count = len(index)
        if self._size is not None:
            index = np.resize(index, max(count, self._size))
        data = self._rows(index)
        if self._functions.takes_lengths:
            squares = self._functions.squared_norms(data, np.float32(1))
            return _Lengths(np.sqrt(squares.numpy()[:count].astype(float)))
        return _Factors(self._functions.captured(data), count)

    def _rows(self, rows: Sequence[int] | np.ndarray) -> Any:
        index = np.asarray(rows)
        return tf.nest.map_structure(
            lambda leaf: tf.gather(leaf, index), self._data
        )


def tolerance_of(model: keras.Model) -> float:
    """By what part of its length a gradient may differ, by rounding."""
    unit = rounding(model)
    return (_UNITS if unit < _HALF else _UNITS_OF_HALF) * unit


def is_learnt(
    model: keras.Model, loss: PerExampleLoss, data: Any, rows: Sequence[int]
) -> bool:
    """Whether losses are so near to zero that gradients are but rounding.

    A probability of 1 has a gradient of 0, the next one below has another.

    Args:
        model: the model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        data: `(x, y[, sample_weight])` of a batch.
        rows: the examples in question: alone and in the batch.
    """
    limit = _LEARNT * rounding(model) ** 2

    def losses(index: Sequence[int]) -> np.ndarray:
        x, y, *weight = tf.nest.map_structure(
            lambda leaf: tf.gather(tf.convert_to_tensor(leaf), index), data
        )
        y_pred = model(x, training=False)
        return np.abs(loss(y, y_pred, weight[0] if weight else None))

    count = len(tf.nest.flatten(data)[0])
    within = losses(range(count))[list(rows)]
    return bool(
        (within <= limit).all()
        and all(losses([row])[0] <= limit for row in rows)
    )


@dataclasses.dataclass(frozen=True)
class _Disagreement:
    """What differs by more than rounding, at which of the examples."""

    row: int
    message: str
    is_plain: bool


class _Lengths:
    """The lengths of examples' gradients, all that such a step tells."""

    tells_apart = False
    step = "squared_norms"

    def __init__(self, lengths: np.ndarray):
        self.lengths = lengths

    def totals(self, functions: GradientFunctions) -> list[tf.Tensor]:
        raise NotImplementedError

    def marks(self, others: Sequence[Any]) -> np.ndarray:
        """Numbers that tell gradients apart, `[n, 1]`."""
        return np.concatenate([seen.lengths for seen in others])[:, np.newaxis]


class _Factors:
    """The factors of examples' gradients, for each variable."""

    tells_apart = True
    step = "captured"

    def __init__(self, captured: Captured, count: int):
        self.captured, self.factors = captured, captured.factors
        if len(captured.losses) > count:  # filled up to a size
            self.factors = tf.nest.map_structure(
                lambda leaf: leaf[:count], captured.factors
            )
        self.losses = captured.losses[:count]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.sqrt(_squares(self.factors).numpy().astype(float))

    @functools.cached_property
    def _total(self) -> list[tuple[tf.Tensor, ...]]:
        return [algebra.total(factors) for factors in self.factors]

    def totals(self, functions: GradientFunctions) -> list[tf.Tensor]:
        """The sum of the gradients, for each of `checked_variables`."""
        flat: dict[int, tf.Tensor] = {}
        groups = zip(self.captured.positions, self._total, strict=True)
        for positions, parts in groups:
            flat.update(zip(positions, parts, strict=True))
        covered = functions.covered_variables
        at = {id(value_of(v)): place for place, v in enumerate(covered)}
        return [
            flat.get(at.get(id(value_of(v)), -1), tf.zeros([1]))
            for v in functions.checked_variables
        ]

    def marks(self, others: Sequence[Any]) -> np.ndarray:
        """Lengths, products with the sum, and losses, `[n, 3]`."""
        joined = algebra.concat([seen.factors for seen in others])
        shares = [
            algebra.contract(factors, own)
            for factors, own in zip(joined, self._total, strict=True)
        ]
        lengths = np.sqrt(_squares(joined).numpy().astype(float))
        losses = np.concatenate([np.asarray(s.losses, float) for s in others])
        whole = _length([part for own in self._total for part in own])
        along = np.asarray(tf.add_n(shares), float) / (whole or 1.0)
        return np.stack([lengths, along, losses], axis=1)


_Seen = _Lengths | _Factors


def _squares(factors: Any) -> tf.Tensor:
    return tf.add_n([algebra.squared_norm(group) for group in factors])


def _alike(
    one: np.ndarray,
    other: np.ndarray,
    tolerance: float,
    largest: np.ndarray,
    noise: np.ndarray | float = 0.0,
) -> bool:
    """Whether an example's numbers are the same in two batches."""
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return bool(np.array_equal(np.isfinite(one), np.isfinite(other)))
    size = np.maximum(np.abs(one), np.abs(other))
    size[1:2] = size[:1]  # a product is measured by the lengths
    scale = np.maximum(size, _FAINT * largest)
    return bool(np.all(np.abs(one - other) <= tolerance * scale + noise))


def _differences(
    one: Sequence[tf.Tensor], other: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    return [
        tf.reshape(b, [-1]) - tf.cast(tf.reshape(a, [-1]), b.dtype)
        for a, b in zip(one, other, strict=True)
    ]


def _length(parts: Sequence[tf.Tensor]) -> float:
    """Of several tensors as one vector."""
    squares = [tf.reduce_sum(tf.square(part)) for part in parts]
    return float(np.sqrt(sum(float(square) for square in squares)))
