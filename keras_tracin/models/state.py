"""A model's state beside its trained weights, kept as it was.

Layers may assign variables when they are called, also in inference mode: a
count of calls, a moving average, a kernel that is brought to length one. Work
that only looks at a model puts them all back.

Synopsis:

    with preserved(model) as state:
        model(x, training=False)
        state.changed()        # the variables that this has moved
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

_DEEPEST = 4  # levels of nested containers to look into


@dataclasses.dataclass(frozen=True)
class HeldVariable:
    """A variable that a model holds.

    Attributes:
        variable: a Keras variable, or TensorFlow's own.
        owner: the layer that holds it.
        is_seed: whether it is the state of a random number generator.
    """

    variable: Any
    owner: keras.Layer
    is_seed: bool = False

    @property
    def name(self) -> str:
        """The name of the variable, for messages."""
        return getattr(self.variable, "path", None) or self.variable.name


class State:
    """The values of a model's variables at one moment.

    Reading shares memory with the variables until these are assigned anew, so
    that nothing is copied of those that stay as they are.

    Args:
        model: a built model.
    """

    def __init__(self, model: keras.Model):
        self._saved = [
            (held, tf.convert_to_tensor(value_of(held.variable)))
            for held in self._held_by(model)
        ]

    def _held_by(self, model: keras.Model) -> list[HeldVariable]:
        return variables_of(model)

    def changed(self, seeds: bool = False) -> list[HeldVariable]:
        """The variables whose values have changed since.

        Args:
            seeds: whether to include the states of random number generators.
        """
        return [
            held
            for held, before in self._saved
            if (seeds or not held.is_seed) and not _same(held.variable, before)
        ]

    def restore(self, seeds_only: bool = False) -> None:
        """Gives the variables the values of that moment."""
        for held, before in self._saved:
            if seeds_only and not held.is_seed:
                continue
            if not _is_untouched(held.variable, before):
                held.variable.assign(before)


class Untracked(State):
    """The values of those variables that are not in `model.variables`."""

    def _held_by(self, model: keras.Model) -> list[HeldVariable]:
        known = {id(value_of(variable)) for variable in model.variables}
        return [
            held
            for held in variables_of(model)
            if id(value_of(held.variable)) not in known
        ]


@contextlib.contextmanager
def preserved(model: keras.Model) -> Iterator[State]:
    """Restores a model's variables when the block ends.

    These are all of `model.variables`, and plain `tf.Variable`s that layers
    hold and Keras does not track. The model may be run in the block.

    Args:
        model: a built model.
    """
    state = State(model)
    try:
        yield state
    finally:
        state.restore()


def layers_with_losses(model: keras.Model) -> list[keras.Layer]:
    """The layers that added a loss from their inputs in the last call."""
    return [
        layer
        for layer in model._flatten_layers()
        if getattr(layer, "_losses", None)
    ]


def variables_of(model: keras.Model) -> list[HeldVariable]:
    """All variables that the layers of a model hold, each once."""
    held: dict[int, HeldVariable] = {}
    layers = model._flatten_layers()
    for layer in reversed(layers):  # the innermost own what is in them
        seeds = {id(value_of(s.state)) for s in _seeds_of(layer)}
        tracked = layer._trainable_variables + layer._non_trainable_variables
        for variable in (*tracked, *_within(vars(layer).values())):
            key = id(value_of(variable))
            held.setdefault(key, HeldVariable(variable, layer, key in seeds))
    for variable in model.variables:  # whatever else Keras knows of
        key = id(value_of(variable))
        is_seed = "seed_generator_state" in variable.path
        held.setdefault(key, HeldVariable(variable, model, is_seed))
    return list(held.values())


def value_of(variable: Any) -> tf.Variable:
    """TensorFlow's variable within one of Keras, or itself."""
    if isinstance(variable, keras.Variable):
        return variable._value
    return variable


def _seeds_of(layer: keras.Layer) -> list[keras.random.SeedGenerator]:
    return list(getattr(layer, "_seed_generators", ()))


def _within(values: Iterable[Any], depth: int = 0) -> Iterator[Any]:
    """The variables in attributes, containers and modules."""
    for value in values:
        if isinstance(value, keras.Variable | tf.Variable):
            if getattr(value, "_value", value) is not None:
                yield value
        elif isinstance(value, keras.random.SeedGenerator):
            yield value.state
        elif isinstance(value, keras.Layer | keras.Optimizer | keras.Metric):
            continue
        elif isinstance(value, tf.Module):
            yield from value.variables
        elif depth < _DEEPEST and isinstance(value, dict):
            yield from _within(list(value.values()), depth + 1)
        elif depth < _DEEPEST and isinstance(value, (list, tuple, set)):
            yield from _within(list(value), depth + 1)


def _is_untouched(variable: Any, before: tf.Tensor) -> bool:
    """Whether a variable was surely not assigned since: a look at no values."""
    if not before.dtype.is_numpy_compatible or before.dtype == tf.string:
        return False
    if "CPU" not in before.backing_device:
        return False  # To look at it would copy it.
    now = tf.convert_to_tensor(value_of(variable))
    return _share_memory(*_contiguous(now, before))


def _same(variable: Any, before: tf.Tensor) -> bool:
    """Whether a variable has the same values, NaN being equal to itself."""
    now = tf.convert_to_tensor(value_of(variable))
    if not now.dtype.is_numpy_compatible or now.dtype == tf.string:
        return bool(np.all(now.numpy() == before.numpy()))
    present, former = _contiguous(now, before)
    if _share_memory(present, former):
        return True  # It was not assigned.
    return present.tobytes() == former.tobytes()


def _contiguous(*tensors: tf.Tensor) -> list[np.ndarray]:
    """Arrays that are views of tensors where they can be, else copies."""
    return [np.ascontiguousarray(tensor.numpy()) for tensor in tensors]


def _share_memory(present: np.ndarray, former: np.ndarray) -> bool:
    """Whether both are views of the same memory; copies are not."""
    return present.ctypes.data == former.ctypes.data
