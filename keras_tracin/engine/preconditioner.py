"""The rate that an optimizer gives each entry of a gradient, as a diagonal.

Over time, a gradient g moves the weights by η D g, where D follows from the
optimizer's state at a checkpoint (t updates, second moment v) and μ is the
momentum:

    SGD                 D = 1 / (1 - μ)
    Adam, AdamW, Nadam  D = 1 / (√(v / (1 - β₂ᵗ)) + ε)
    RMSprop             D = 1 / (√(v + ε) (1 - μ))
    Adagrad             D = 1 / √(v + ε)
    Adamax              D = 1 / (u + ε)

A momentum spreads a gradient over later steps, 1 + μ + μ² + … of it in all; the
first moment of Adam spreads the whole of it. Amsgrad's v is its largest second
moment, a centered RMSprop's the variance. Clipping and weight decay are left
out: they do not depend on the gradient alone. Keras puts Adam's ε beside the
moment that is not yet corrected, and so does this.

Synopsis:

    Preconditioner(model).at(run[-1], groups)   # [size] each, in float32
    diagonal(model.optimizer, variable)         # the same of its present state
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.gradients.flat import size_of
from keras_tracin.runs import Checkpoint, RecordedState, recorded_state

_SLICE = 2**20  # numbers that are worked out together, in float64

_Slot = Callable[[str], np.ndarray]  # by name: flat, in float64
_Rule = Callable[[Any, _Slot], Any]


class Preconditioner:
    """The diagonals of the checkpoints of one model.

    Args:
        model: compiled with the optimizer that trained it.

    Raises:
        ValueError: if its optimizer is none of those above.
    """

    def __init__(self, model: keras.Model):
        self._model = model
        optimizer = getattr(model, "optimizer", None)
        _rule(getattr(optimizer, "inner_optimizer", optimizer))

    def at(
        self, checkpoint: Checkpoint, groups
    ) -> tuple[tuple[tf.Tensor, ...], ...]:
        """D for each variable of each group, flat `[size]`.

        Raises:
            ValueError: if the checkpoint has no state of this optimizer.
        """
        with recorded_state(self._model, checkpoint) as state:
            return tuple(
                tuple(_recorded_diagonal(state, v) for v in group)
                for group in groups
            )

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
        with recorded_state(self._model, checkpoint) as state:
            for group in groups:
                gradients = list(parts.pop(0).parts)
                products = []
                for variable in group:
                    gradient = gradients.pop(0)
                    weights = _recorded_diagonal(state, variable)
                    products.append(gradient * tf.cast(weights, gradient.dtype))
                    del gradient, weights
                weighed.append(DenseGradients(tuple(products)))
        return tuple(weighed)


def diagonal(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    """D of one variable, `[size]`, by an optimizer's present state."""

    def slot(name: str) -> np.ndarray:
        own = getattr(optimizer, name)[optimizer._get_variable_index(variable)]
        return np.asarray(keras.ops.convert_to_numpy(own), np.float64).ravel()

    values = _rule(optimizer)(optimizer, slot)
    whole = np.broadcast_to(values, [size_of(variable)])
    return np.ascontiguousarray(whole, dtype=np.float32)


def _recorded_diagonal(
    state: RecordedState, variable: keras.Variable
) -> tf.Tensor:
    """D of one variable, `[size]`, with no other array of its size."""
    shape = tuple(variable.shape)
    rule = _rule(state.optimizer)
    if not shape:

        def number(name: str) -> np.ndarray:
            return np.asarray(state.slot(name, variable), np.float64)

        return tf.constant([rule(state.optimizer, number)], tf.float32)
    row = max(1, math.prod(shape[1:]))
    rows = max(1, _SLICE // row)
    # A variable, since it can be filled in place.
    whole = tf.Variable(tf.zeros([math.prod(shape)]))
    for start in range(0, shape[0], rows):
        count = min(rows, shape[0] - start)

        def slot(name: str, part: slice = slice(start, start + count)):
            array = state.slot(name, variable)[part]
            return np.asarray(array, np.float64).ravel()

        values = np.broadcast_to(rule(state.optimizer, slot), [count * row])
        whole[start * row : (start + count) * row].assign(
            tf.constant(values, tf.float32)
        )
    return whole.read_value()


def _rule(optimizer: Any) -> _Rule:
    for kind in type(optimizer).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    raise ValueError(
        "`optimizer_aware=True` knows how "
        f"{', '.join(kind.__name__ for kind in _RULES)} use a gradient. "
        f"Received a model with the optimizer {type(optimizer).__name__!r}; "
        "leave the option out for the plain form."
    )


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
    updates = int(keras.ops.convert_to_numpy(optimizer.iterations))
    return float(np.sqrt(1.0 - optimizer.beta_2**updates))


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


_RULES: dict[type, _Rule] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.Nadam: _nadam,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
    keras.optimizers.Adamax: _adamax,
}
