"""What an optimizer makes of a gradient: each entry's own rate, as a diagonal.

Over time, a gradient g moves the weights by η D g, where D follows from the
optimizer's state at a checkpoint (t updates, second moment v) and μ is the
momentum:

    SGD                 D = 1 / (1 - μ)
    Adam, AdamW, Nadam  D = 1 / (√(v / (1 - β₂ᵗ)) + ε)
    RMSprop             D = 1 / (√(v + ε) (1 - μ))
    Adagrad             D = 1 / √(v + ε)
    Adamax              D = 1 / (u + ε)

A momentum spreads a gradient over later steps, 1 + μ + μ² + … of it in all; the
first moment of Adam spreads the whole of it. Amsgrad's v is its largest, that
of a centered RMSprop the variance. Clipping and weight decay are left out: they
are not the gradient's. Keras puts Adam's ε beside the moment that is not yet
corrected, and so does this.

Synopsis:

    optimizer = recorded_optimizer(model, run[-1])
    diagonal(optimizer, variable)   # [size], in float32
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.gradients.flat import size_of
from keras_tracin.runs import Checkpoint, recorded_optimizer


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
        optimizer: Any = recorded_optimizer(self._model, checkpoint)
        return tuple(
            tuple(tf.constant(diagonal(optimizer, v)) for v in group)
            for group in groups
        )


def diagonal(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    """D of one variable, `[size]`."""
    values = _rule(optimizer)(optimizer, variable)
    whole = np.broadcast_to(values, [size_of(variable)])
    return np.ascontiguousarray(whole, dtype=np.float32)


def _rule(optimizer: Any) -> Callable[[Any, keras.Variable], Any]:
    for kind in type(optimizer).__mro__:
        if kind in _RULES:
            return _RULES[kind]
    raise ValueError(
        "`optimizer_aware=True` knows how "
        f"{', '.join(kind.__name__ for kind in _RULES)} use a gradient. "
        f"Received a model with the optimizer {type(optimizer).__name__!r}; "
        "leave the option out for the plain form."
    )


def _slot(optimizer: Any, name: str, variable: keras.Variable) -> np.ndarray:
    """A slot of the optimizer, flat, in float64."""
    slot = getattr(optimizer, name)[optimizer._get_variable_index(variable)]
    return np.asarray(keras.ops.convert_to_numpy(slot), np.float64).ravel()


def _momentum(optimizer: Any) -> float:
    return 1.0 / (1.0 - optimizer.momentum)


def _sgd(optimizer: Any, variable: keras.Variable) -> float:
    return _momentum(optimizer)


def _adam(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    name = "_velocity_hats" if optimizer.amsgrad else "_velocities"
    second = np.sqrt(_slot(optimizer, name, variable))
    return _correction(optimizer) / (second + optimizer.epsilon)


def _nadam(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    second = np.sqrt(_slot(optimizer, "_velocities", variable))
    return 1.0 / (second / _correction(optimizer) + optimizer.epsilon)


def _correction(optimizer: Any) -> float:
    """√(1 - β₂ᵗ)."""
    updates = int(keras.ops.convert_to_numpy(optimizer.iterations))
    return float(np.sqrt(1.0 - optimizer.beta_2**updates))


def _rmsprop(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    second = _slot(optimizer, "_velocities", variable)
    if optimizer.centered:
        second -= _slot(optimizer, "_average_gradients", variable) ** 2
    return _momentum(optimizer) / np.sqrt(second + optimizer.epsilon)


def _adagrad(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    second = _slot(optimizer, "_accumulators", variable)
    return 1.0 / np.sqrt(second + optimizer.epsilon)


def _adamax(optimizer: Any, variable: keras.Variable) -> np.ndarray:
    return 1.0 / (_slot(optimizer, "_u", variable) + optimizer.epsilon)


_RULES: dict[type, Callable[[Any, keras.Variable], Any]] = {
    keras.optimizers.SGD: _sgd,
    keras.optimizers.Adam: _adam,
    keras.optimizers.Nadam: _nadam,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.Adagrad: _adagrad,
    keras.optimizers.Adamax: _adamax,
}
