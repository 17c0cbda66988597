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

    time = TrainingTime(model, run)     # None for the model's optimizer
    time.damping(model.trainable_variables)
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.engine.preconditioner import Preconditioner, diagonal
from keras_tracin.runs import Checkpoint, TrainingRun
from keras_tracin.runs.present_rate import mean_rate, num_batches

_REMEDY = "give a number as `damping=`"


class TrainingTime:
    """How far a training went, T.

    Args:
        model: compiled with the optimizer that trained it.
        run: its training; None for what the optimizer itself tells, which has
            counted its steps and has a schedule, or the rate of now.
        scale: a batch's loss as a multiple of the mean over its examples.

    Raises:
        ValueError: if the optimizer is none of those that `Preconditioner`
            knows or has made no step, or if the run knows neither the rates of
            all steps nor, for Adam and others, the optimizer's state.
    """

    def __init__(
        self, model: keras.Model, run: TrainingRun | None, scale: float = 1.0
    ):
        self._model, self._run, self._scale = model, run, scale
        self._preconditioner = Preconditioner(model, "damping='auto'", _REMEDY)
        rates = self._rates
        total = sum(rate for _, rate in rates)
        if not (np.isfinite(total) and total > 0):
            raise ValueError(
                "damping='auto' is the damping that stands for the steps of "
                f"the training, whose rates add up to {total:g}. Pass the "
                f"`run=` that was recorded, or {_REMEDY}."
            )
        if self._preconditioner.constant is None:
            for checkpoint, _ in rates:
                if checkpoint is not None:
                    self._preconditioner.check(checkpoint)

    def damping(self, variables: Sequence[keras.Variable]) -> float:
        """λ = 1 / T, the same for all checkpoints of a run.

        What an example did at one of them lasts to the end of training.

        Args:
            variables: those that gradients are taken of.
        """
        time = sum(
            rate * self._mean_factor(checkpoint, variables)
            for checkpoint, rate in self._rates
        )
        return float(1.0 / (self._scale * time))

    @functools.cached_property
    def _rates(self) -> list[tuple[Checkpoint | None, float]]:
        """Sums of learning rates, with the checkpoint that D is known at."""
        if self._run is None:
            return [(None, self._rates_of_optimizer())]
        rates: list[tuple[Checkpoint | None, float]] = []
        for checkpoint in self._run:
            own = checkpoint.learning_rate_sum
            if own is None:
                raise ValueError(
                    "damping='auto' needs the learning rate of every step. "
                    "Received a run adopted from weight files, which knows one "
                    f"rate for each; {_REMEDY}."
                )
            if own != 0:
                rates.append((checkpoint, own))
        return rates

    def _rates_of_optimizer(self) -> float:
        optimizer, model = self._preconditioner.optimizer, self._model
        batches = num_batches(model) if optimizer.built else 0
        if not batches:
            return 0.0
        steps = batches / (optimizer.gradient_accumulation_steps or 1)
        return mean_rate(model, batches) * steps

    def _mean_factor(
        self,
        checkpoint: Checkpoint | None,
        variables: Sequence[keras.Variable],
    ) -> float:
        """The mean of D over the entries of the variables."""
        preconditioner = self._preconditioner
        if preconditioner.constant is not None:
            return preconditioner.constant
        if checkpoint is not None:
            with preconditioner.diagonals(checkpoint) as diagonal_of:
                return _mean(map(diagonal_of, variables))
        optimizer = preconditioner.optimizer
        known = {id(own) for own in optimizer._trainable_variables}
        updated = [own for own in variables if id(own) in known]
        if not updated:
            raise ValueError(
                "damping='auto' needs variables that the model's optimizer has "
                f"updated. Received: {[own.path for own in variables]}, which "
                f"it does not have. Compile and train with them, or {_REMEDY}."
            )
        return _mean(diagonal(optimizer, own) for own in updated)


def _mean(diagonals: Iterable[Any]) -> float:
    """The mean over the entries of all variables."""
    total, count = 0.0, 0
    for values in diagonals:
        array = keras.ops.convert_to_numpy(values)
        total += float(np.sum(array, dtype=np.float64))
        count += array.size
    return total / count
