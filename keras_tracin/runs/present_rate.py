"""The present learning rate and step of a model's optimizer.

Synopsis:

    count = num_batches(model)
    rate_at(model, count)                    # of the next update
    mean_rate(model, count)                  # of those before
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_RATES = 1_000  # of a schedule, that a mean is made of


def rate_at(model: keras.Model, count: int) -> float:
    """The learning rate, as it is now, of the update after `count` batches."""
    rate = _updating_optimizer(model)._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return _number(rate(count))
    # `learning_rate` would evaluate a schedule, and calls a callable.
    return _number(_updating_optimizer(model).learning_rate)


def mean_rate(model: keras.Model, count: int) -> float:
    """The mean learning rate of the updates after the first `count` batches.

    Of a schedule, which is asked for a thousand of them; else the present one.

    Args:
        model: a compiled model.
        count: number of batches, one or more.
    """
    rate = _updating_optimizer(model)._learning_rate
    if not isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        return rate_at(model, count)
    places = np.linspace(0, count - 1, min(count, _RATES)).round()
    return float(np.mean([rate_at(model, int(place)) for place in places]))


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
