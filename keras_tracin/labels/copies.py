"""Copies of a model, to be trained anew as a run was.

Synopsis:

    copy = untrained_copy(model, run)
    training = training_of(run, copy, 5000, num_in_copy=3333)
    copy.fit(x, y, training.batch_size, training.epochs)
"""

from __future__ import annotations

import dataclasses
import math

import keras
import numpy as np

from keras_tracin.models.compiled import compiled_loss
from keras_tracin.runs import TrainingRun, run_weights


def untrained_copy(
    model: keras.Model, run: TrainingRun | None = None
) -> keras.Model:
    """A compiled copy of a model with a new optimizer, without metrics.

    Args:
        model: the compiled model.
        run: a run of it, with whose initial weights the copy begins: they may
            be pretrained or adapted to data. Without one, weights are drawn.

    Raises:
        ValueError: if Keras cannot copy the model or its optimizer.
        TypeError: likewise.
        NotImplementedError: likewise.
    """
    copy = keras.models.clone_model(model)
    compiled, optimizer = compiled_loss(model), model.optimizer
    if compiled is None or optimizer is None:
        raise ValueError("it is not compiled with a loss and an optimizer.")
    copy.compile(
        optimizer=type(optimizer).from_config(optimizer.get_config()),
        loss=compiled.loss,
        loss_weights=compiled.weights,
        run_eagerly=model.run_eagerly,
        jit_compile=model.jit_compile,
    )
    if run is not None and run.initial is not None:
        with run_weights(copy) as load:
            load(run.initial)
            initial = copy.get_weights()
        copy.set_weights(initial)
    return copy


@dataclasses.dataclass(frozen=True)
class Training:
    """How a run was trained, as far as it knows.

    Attributes:
        epochs: number of epochs.
        batch_size: number of examples in a batch.
        callbacks: what sets the learning rate of each epoch, where the
            optimizer has no schedule.
    """

    epochs: int
    batch_size: int
    callbacks: list[keras.callbacks.Callback]


def training_of(
    run: TrainingRun, model: keras.Model, num_examples: int, num_in_copy: int
) -> Training:
    """How a run was trained, up to its last checkpoint.

    Where the optimizer has a schedule, the batches of a copy that is trained
    on fewer examples are smaller, so that it comes to the same end.

    Args:
        run: a recorded run.
        model: the model that is to be trained.
        num_examples: number of training examples of the run.
        num_in_copy: number of examples that the model is to be trained on.
    """
    last, optimizer = run[-1], model.optimizer
    every = getattr(optimizer, "gradient_accumulation_steps", None) or 1
    steps = last.step or 0
    batches = max(1, round(steps * every / last.epoch))
    callbacks: list[keras.callbacks.Callback] = []
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    rate = getattr(inner, "_learning_rate", None)
    has_schedule = isinstance(
        rate, keras.optimizers.schedules.LearningRateSchedule
    )
    if run.learning_rates is not None and not has_schedule:
        # Callbacks may have changed it, so that the model's is the last.
        parts = np.array_split(run.learning_rates[:steps], last.epoch)
        rates = [float(part.mean()) for part in parts]
        callbacks.append(
            keras.callbacks.LearningRateScheduler(lambda epoch: rates[epoch])
        )
    size = math.ceil((num_in_copy if has_schedule else num_examples) / batches)
    return Training(last.epoch, size, callbacks)
