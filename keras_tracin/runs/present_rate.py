"""The present learning rate and step of a model's optimizer.

Synopsis:

    count = num_batches(model)
    rate_at(model, count)                    # of the next update
"""

from __future__ import annotations

from typing import Any

import keras


def rate_at(model: keras.Model, count: int) -> float:
    """The learning rate, as it is now, of the update after `count` batches."""
    rate = _updating_optimizer(model)._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return _number(rate(count))
    # `learning_rate` would evaluate a schedule, and calls a callable.
    return _number(_updating_optimizer(model).learning_rate)


def num_batches(model: keras.Model) -> int:
    """Number of batches that the model's optimizer has seen."""
    # Under a distribution strategy a variable does not convert by int().
    count = _updating_optimizer(model)._iterations
    return int(keras.ops.convert_to_numpy(count))


def _updating_optimizer(model: keras.Model) -> Any:
    """The optimizer whose counter advances with each update."""
    optimizer = model.optimizer
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return optimizer.inner_optimizer
    return optimizer


def _number(value) -> float:
    return float(keras.ops.convert_to_numpy(value))
