"""The damping that stands for the end of training.

Steps of gradient descent at rates η_t, T = Σ_t η_t in all, leave a quadratic
objective where a penalty of λ = 1 / T would about have left it: along an
eigenvector of curvature h they have gone 1 - exp(-h T) of the way to the
minimum, and the penalty allows h / (h + λ) of it (Ali, Kolter and Tibshirani
2019, "A Continuous-Time View of Early Stopping for Least Squares
Regression"). What an example did along directions of less curvature than that
is not known to training, and an inverse that divides by it predicts noise.

Where an optimizer multiplies gradients by a diagonal D, as Adam does, T is
Σ_t η_t times the mean of D over the weights.

Synopsis:

    damping_of_training(engine, run, scale=1.0)
    damping_of_training(engine, None, scale=1.0)   # by the model's optimizer
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_tracin.engine.engine import Engine
from keras_tracin.engine.preconditioner import Preconditioner, diagonal
from keras_tracin.runs import TrainingRun
from keras_tracin.runs.present_rate import num_batches, rate_at

_REMEDY = "give a number as `damping=`"
_RATES = 1_000  # of a schedule, that a sum is made of


def damping_of_training(
    engine: Engine, run: TrainingRun | None, scale: float = 1.0
) -> float:
    """λ = 1 / (Σ_t η_t D): the same for all checkpoints of a run.

    Effects on the result of training last from a checkpoint to its end.

    Args:
        engine: the model, compiled with the optimizer that trained it.
        run: its training; None for what the optimizer itself tells, which has
            counted its steps and has a schedule, or the rate of now.
        scale: a batch's loss as a multiple of the mean over its examples.

    Raises:
        ValueError: if the optimizer is none of those that `Preconditioner`
            knows, has made no step, or its rates are not known.
    """
    preconditioner = Preconditioner(engine.model, "damping='auto'", _REMEDY)
    if run is None:
        time = _of_optimizer(engine, preconditioner)
    else:
        time = _of_run(engine, preconditioner, run)
    if not (np.isfinite(time) and time > 0):
        raise ValueError(
            "damping='auto' is the damping that stands for the steps of the "
            f"training, whose rates add up to {time:g}. Pass the `run=` that "
            f"was recorded, or {_REMEDY}."
        )
    return float(1.0 / (scale * time))


def _of_run(
    engine: Engine, preconditioner: Preconditioner, run: TrainingRun
) -> float:
    time = 0.0
    for checkpoint in run:
        rates = checkpoint.learning_rate_sum
        if rates is None:
            raise ValueError(
                "damping='auto' needs the learning rate of every step. "
                "Received a run adopted from weight files, which knows one "
                f"rate for each; {_REMEDY}."
            )
        if rates == 0:
            continue
        mean = preconditioner.constant
        if mean is None:
            with preconditioner.diagonals(checkpoint) as diagonal_of:
                mean = _mean(map(diagonal_of, engine.variables))
        time += rates * mean
    return time


def _of_optimizer(engine: Engine, preconditioner: Preconditioner) -> float:
    optimizer, model = preconditioner.optimizer, engine.model
    steps = num_batches(model) if optimizer.built else 0
    if not steps:
        return 0.0
    places = np.linspace(0, steps - 1, min(steps, _RATES)).round()
    rates = np.mean([rate_at(model, int(place)) for place in places]) * steps
    mean = preconditioner.constant
    if mean is None:
        known = {id(own) for own in optimizer._trainable_variables}
        updated = [own for own in engine.variables if id(own) in known]
        mean = _mean(diagonal(optimizer, own) for own in updated)
    # Each batch counts, though several are averaged into one step.
    return float(rates * mean) / (optimizer.gradient_accumulation_steps or 1)


def _mean(diagonals: Any) -> float:
    """The mean over the entries of all variables."""
    total, count = 0.0, 0
    for values in diagonals:
        array = keras.ops.convert_to_numpy(values)
        total += float(np.sum(array, dtype=np.float64))
        count += array.size
    return total / count if count else 0.0
