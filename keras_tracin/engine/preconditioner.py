"""The rate that an optimizer gives each entry of a gradient, as a diagonal.

Over time, a gradient g moves the weights w by η D g, where D follows from the
optimizer's state at a checkpoint (t updates, second moment v, first moment m)
and μ is the momentum:

    SGD                 D = 1 / (1 - μ)
    Adam, AdamW, Nadam  D = 1 / (√(v / (1 - β₂ᵗ)) + ε)
    RMSprop             D = 1 / (√(v + ε) (1 - μ))
    Adagrad             D = 1 / √(v + ε)
    Adamax              D = 1 / (u + ε)
    Lamb                D = r / (√(v / (1 - β₂ᵗ)) + ε), r = |w| / |update|
    Adafactor           D = r / √v, r = max(ε₂, rms(w)) min(1, 1 / (η √t))
    Lion                D = Σ|m| / Σm²

A momentum spreads a gradient over later steps, 1 + μ + μ² + … of it in all; the
first moment of Adam spreads the whole of it. Amsgrad's v is its largest second
moment, a centered RMSprop's the variance. Clipping and weight decay are left
out: they do not depend on the gradient alone. Keras puts Adam's ε beside the
moment that is not yet corrected, and so does this. Norms, and the sums of Lion,
are over the whole of a variable. Lion moves every weight by the sign of its
moment, in which no example has a share; its D is the slope of the line that
comes nearest to the sign, by least squares over the variable's moments, as
Bussgang's theorem has it. Muon multiplies a gradient by a matrix, which no
diagonal stands for, and is refused.

Synopsis:

    Preconditioner(model).at(run[-1], groups)   # [size] each, in float32
    diagonal(model.optimizer, variable)         # the same of its present state
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.flat import size_of
from keras_tracin.runs import Checkpoint, RecordedState, recorded_state

_SLICE = 2**20  # numbers that are worked out together, in float64

_Slot = Callable[[str], np.ndarray]  # by name: flat, in float64


@dataclasses.dataclass(frozen=True)
class _Whole:
    """A variable as a whole, when an optimizer is about to update it.

    Attributes:
        optimizer: the optimizer.
        slots: the slots of each slice of the variable, in order.
        variable: the variable, which has its value.
        rate: the learning rate.
    """

    optimizer: Any
    slots: Iterable[_Slot]
    variable: keras.Variable
    rate: float


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How an optimizer uses a gradient.

    Attributes:
        entries: gives D for some entries of a variable, of their slots.
        scale: gives what D is multiplied by, the same for all entries.
    """

    entries: Callable[[Any, _Slot], Any]
    scale: Callable[[_Whole], float] | None = None


class Preconditioner:
    """The diagonals of the checkpoints of one model.

    Args:
        model: compiled with the optimizer that trained it.
        needed_by: what needs D, for errors.
        remedy: what to do where it is not known, for errors.

    Attributes:
        optimizer: the model's; for `LossScaleOptimizer`, the inner one.

    Raises:
        ValueError: if its optimizer is none of those above.
    """

    def __init__(
        self,
        model: keras.Model,
        needed_by: str = "`optimizer_aware=True`",
        remedy: str = "leave the option out for the plain form",
    ):
        self._model = model
        optimizer = getattr(model, "optimizer", None)
        self.optimizer: Any = getattr(optimizer, "inner_optimizer", optimizer)
        if _find_rule(self.optimizer) is None:
            raise ValueError(
                f"{needed_by} knows how "
                f"{', '.join(kind.__name__ for kind in _RULES)} use a "
                "gradient. Received a model with the optimizer "
                f"{type(self.optimizer).__name__!r}; {remedy}."
            )

    @property
    def constant(self) -> float | None:
        """D of an optimizer that has one for all weights and times, as SGD."""
        is_constant = _find_rule(self.optimizer) is _RULES[keras.optimizers.SGD]
        return _momentum(self.optimizer) if is_constant else None

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError if D of a checkpoint cannot be known.

        Args:
            checkpoint: the checkpoint, which needs the optimizer's state.
        """
        with recorded_state(self._model, checkpoint):
            pass

    @contextlib.contextmanager
    def diagonals(
        self, checkpoint: Checkpoint
    ) -> Iterator[Callable[[keras.Variable], tf.Tensor]]:
        """A function that gives D of a variable, flat `[size]`, in a block.

        Raises:
            ValueError: if the checkpoint has no state of this optimizer.
        """
        rate = checkpoint.learning_rate
        with recorded_state(self._model, checkpoint) as state:
            yield lambda variable: _recorded_diagonal(state, variable, rate)

    def at(
        self, checkpoint: Checkpoint, groups
    ) -> tuple[tuple[tf.Tensor, ...], ...]:
        """D for each variable of each group, flat `[size]`.

        Raises:
            ValueError: if the checkpoint has no state of this optimizer.
        """
        with self.diagonals(checkpoint) as diagonal_of:
            return tuple(tuple(map(diagonal_of, group)) for group in groups)

    def weigh(
        self, parts: list[DenseGradients], checkpoint: Checkpoint, groups
    ) -> tuple[DenseGradients, ...]:
        """D times gradients, of which one at a time is held twice.

        Args:
            parts: dense gradients `[m, size]` of each group's variables; the
                list is emptied.
            checkpoint: with the state of the optimizer.
            groups: the variables.

        Raises:
            ValueError: as `at`.
        """
        weighed = []
        with self.diagonals(checkpoint) as diagonal_of:
            for group in groups:
                gradients = list(parts.pop(0).parts)
                products = []
                for variable in group:
                    gradient = gradients.pop(0)
                    weights = diagonal_of(variable)
                    products.append(gradient * tf.cast(weights, gradient.dtype))
                    del gradient, weights
                weighed.append(DenseGradients(tuple(products)))
        return tuple(weighed)


def diagonal(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    """D of one variable, `[size]`, by an optimizer's present state."""

    def slot(name: str) -> np.ndarray:
        own = getattr(optimizer, name)[optimizer._get_variable_index(variable)]
        return np.asarray(keras.ops.convert_to_numpy(own), np.float64).ravel()

    rule = _rule(optimizer)
    values = np.broadcast_to(rule.entries(optimizer, slot), [size_of(variable)])
    if rule.scale is not None:
        rate = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        values = values * rule.scale(_Whole(optimizer, [slot], variable, rate))
    return np.ascontiguousarray(values, dtype=np.float32)


def _recorded_diagonal(
    state: RecordedState, variable: keras.Variable, rate: float
) -> tf.Tensor:
    """D of one variable, `[size]`, with no other array of its size."""
    shape, optimizer = tuple(variable.shape), state.optimizer
    row = max(1, math.prod(shape[1:]))
    rows = max(1, _SLICE // row)
    count = shape[0] if shape else 1
    slices = [
        slice(start, min(start + rows, count))
        for start in range(0, count, rows)
    ]

    def slots(part: slice) -> _Slot:
        index = part if shape else ()

        def slot(name: str) -> np.ndarray:
            array = state.slot(name, variable)[index]
            return np.asarray(array, np.float64).ravel()

        return slot

    rule = _rule(optimizer)
    scale = 1.0
    if rule.scale is not None:
        whole = _Whole(optimizer, map(slots, slices), variable, rate)
        scale = rule.scale(whole)
    # A variable, since it can be filled in place.
    filled = tf.Variable(tf.zeros([count * row]))
    for part in slices:
        values = scale * rule.entries(optimizer, slots(part))
        size = (part.stop - part.start) * row
        filled[part.start * row : part.stop * row].assign(
            tf.constant(np.broadcast_to(values, [size]), tf.float32)
        )
    return filled.read_value()


def _find_rule(optimizer: Any) -> _Rule | None:
    kinds = type(optimizer).__mro__
    if any(kind.__name__ == "Muon" for kind in kinds):
        return None
    return next((_RULES[kind] for kind in kinds if kind in _RULES), None)


def _rule(optimizer: Any) -> _Rule:
    rule = _find_rule(optimizer)
    assert rule is not None  # `Preconditioner` refuses others
    return rule


def _momentum(optimizer: Any) -> float:
    return 1.0 / (1.0 - optimizer.momentum)


def _sgd(optimizer: Any, slot: _Slot) -> float:
    return _momentum(optimizer)


def _adam(optimizer: Any, slot: _Slot) -> np.ndarray:
    name = "_velocity_hats" if optimizer.amsgrad else "_velocities"
    second = np.sqrt(slot(name))
    return _correction(optimizer) / (second + optimizer.epsilon)


def _nadam(optimizer: Any, slot: _Slot) -> np.ndarray:
    second = np.sqrt(slot("_velocities"))
    return 1.0 / (second / _correction(optimizer) + optimizer.epsilon)


def _correction(optimizer: Any) -> float:
    """√(1 - β₂ᵗ)."""
    return float(np.sqrt(1.0 - optimizer.beta_2 ** _updates(optimizer)))


def _updates(optimizer: Any) -> int:
    return int(keras.ops.convert_to_numpy(optimizer.iterations))


def _rmsprop(optimizer: Any, slot: _Slot) -> np.ndarray:
    second = slot("_velocities")
    if optimizer.centered:
        second -= slot("_average_gradients") ** 2
    return _momentum(optimizer) / np.sqrt(second + optimizer.epsilon)


def _adagrad(optimizer: Any, slot: _Slot) -> np.ndarray:
    second = slot("_accumulators")
    return 1.0 / np.sqrt(second + optimizer.epsilon)


def _adamax(optimizer: Any, slot: _Slot) -> np.ndarray:
    return 1.0 / (slot("_u") + optimizer.epsilon)


def _trust(whole: _Whole) -> float:
    """Lamb's ratio of the length of the weights to that of the update."""
    optimizer, variable = whole.optimizer, whole.variable
    first = 1.0 - optimizer.beta_1 ** _updates(optimizer)
    square = sum(
        float(
            np.sum((slot("_momentums") / first * _nadam(optimizer, slot)) ** 2)
        )
        for slot in whole.slots
    )
    weights = np.sqrt(size_of(variable)) * _root_mean_square(variable)
    return float(weights / np.sqrt(square)) if weights and square else 1.0


def _adafactor(optimizer: Any, slot: _Slot) -> np.ndarray:
    return 1.0 / np.sqrt(slot("_v"))


def _relative_step(whole: _Whole) -> float:
    """Adafactor's step size as a multiple of the learning rate."""
    optimizer = whole.optimizer
    bound = whole.rate * np.sqrt(_updates(optimizer))
    size = max(optimizer.epsilon_2, _root_mean_square(whole.variable))
    return float(size / max(1.0, bound))


def _no_entries(optimizer: Any, slot: _Slot) -> float:
    return 1.0


def _slope_of_sign(whole: _Whole) -> float:
    """Lion's D: the slope of the line that is nearest to the sign."""
    sizes, squares = 0.0, 0.0
    for slot in whole.slots:
        moments = slot("_momentums")
        sizes += float(np.abs(moments).sum())
        squares += float((moments**2).sum())
    return sizes / squares if squares else 0.0


def _root_mean_square(variable: keras.Variable) -> float:
    value = keras.ops.convert_to_numpy(variable)
    return float(np.sqrt(np.mean(np.square(value, dtype=np.float64))))


_RULES: dict[type, _Rule] = {
    keras.optimizers.SGD: _Rule(_sgd),
    keras.optimizers.Adam: _Rule(_adam),
    keras.optimizers.Nadam: _Rule(_nadam),
    keras.optimizers.RMSprop: _Rule(_rmsprop),
    keras.optimizers.Adagrad: _Rule(_adagrad),
    keras.optimizers.Adamax: _Rule(_adamax),
    keras.optimizers.Lamb: _Rule(_nadam, _trust),
    keras.optimizers.Adafactor: _Rule(_adafactor, _relative_step),
    keras.optimizers.Lion: _Rule(_no_entries, _slope_of_sign),
}
