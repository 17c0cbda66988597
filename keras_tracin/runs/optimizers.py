"""The optimizers that a model holds, and what they have counted.

Synopsis:

    for optimizer in optimizers_of(model):
        read_count(optimizer)
"""

from __future__ import annotations

import zlib
from typing import Any

import keras

_OptimizerMap = getattr(keras.optimizers, "OptimizerMap", ())


def optimizers_of(model: keras.Model) -> list[Any]:
    """The optimizers that a model, a layer of it or one of them holds.

    They are looked for in attributes, and in lists, tuples and dictionaries in
    them.
    """
    return optimizers_in([vars(layer) for layer in model._flatten_layers()])


def read_count(optimizer: Any) -> int:
    """Number of batches that it has seen; it may accumulate several."""
    return int(keras.ops.convert_to_numpy(optimizer._iterations))


def count_updates(model: keras.Model) -> int:
    """The sum of the counters of the model's optimizers."""
    return sum(read_count(o) for o in optimizers_of(model))


def check_no_updates(model: keras.Model, before: int) -> None:
    """Raises ValueError if an epoch had updates, but began no run.

    Args:
        model: the model that is trained.
        before: what `count_updates` was before the epoch.
    """
    missed = count_updates(model) - before
    if missed > 0:
        raise ValueError(
            f"The model's optimizers made {missed} updates in this epoch, "
            "but the run has not begun: model.train_function was not the "
            "one that TracInCheckpoint had set. It records model.fit "
            "and model.train_on_batch. If another callback compiles the "
            "model or makes its train function anew, list TracInCheckpoint "
            "after it; a loop that applies gradients itself belongs in "
            "the model's train_step."
        )


def was_trained(model: keras.Model) -> bool:
    """Whether the model's own optimizers, not those of layers, have counted."""
    own = optimizers_in(vars(model))
    return any(read_count(optimizer) for optimizer in own)


def optimizers_in(values: Any) -> list[Any]:
    """The optimizers in attributes, and in those of the optimizers."""
    optimizers: dict[int, Any] = {}
    seen: dict[int, Any] = {}  # by id, which is theirs while they are held

    def visit(value: Any) -> None:
        if id(value) in seen:
            return
        if isinstance(value, keras.optimizers.Optimizer):
            seen[id(value)] = optimizers[id(value)] = value
            visit(vars(value))
        elif isinstance(value, _OptimizerMap):
            visit([value.default_optimizer, *value.values()])
        elif isinstance(value, (dict, list, tuple)):
            seen[id(value)] = value
            values = value.values() if isinstance(value, dict) else value
            for member in list(values):
                visit(member)

    visit(values)
    return list(optimizers.values())


def weight_marks(model: keras.Model) -> dict[int, int]:
    """A checksum of each weight that may be trained, by its position.

    Weights that are a layer's state, such as moving averages, have none.
    """
    trained = {
        id(variable)
        for layer in model._flatten_layers()
        for variable in layer._trainable_variables
    }
    return {
        position: zlib.crc32(keras.ops.convert_to_numpy(weight).tobytes())
        for position, weight in enumerate(model.weights)
        if id(weight) in trained
    }
