"""A small model and a run of it, written without training."""

import itertools

import keras
import numpy as np

from keras_tracin.runs import RunWriter, TrainingRun

RATES = np.array([0.5, 0.25, 0.75, 0.125, 0.5, 1.0, 2.0])


def make_model(units=2):
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(units)])


def make_run(directory, model=None, rates=RATES, **arrays):
    """Steps 1, 3 and 6 are checkpoints, epochs end there and at step 7."""
    model = model or make_model()
    writer = RunWriter.create(directory, model)
    ends = [0, 1, 3, 6, 7]
    for epoch, (start, stop) in enumerate(itertools.pairwise(ends), start=1):
        shift_weights(model, stop)
        logs = {"loss": float(epoch)}
        if epoch % 2 == 0:
            logs["mae"] = float(epoch)
        every = {"learning_rate": rates, **arrays}
        writer.append(
            model,
            {name: array[start:stop] for name, array in every.items()},
            epoch=epoch,
            logs=logs,
            epoch_end=True,
            save_weights=epoch < 4,
        )
    return directory


def shift_weights(model, by=1.0):
    model.set_weights([weight + by for weight in model.get_weights()])


def make_run_of_losses(directory, losses):
    """A run of one step in each epoch, which ended at these losses."""
    model = make_model()
    writer = RunWriter.create(directory, model)
    for epoch, loss in enumerate(losses, start=1):
        shift_weights(model)
        writer.append(
            model,
            {"learning_rate": np.array([0.1])},
            epoch=epoch,
            logs={"loss": loss},
            epoch_end=True,
            save_weights=True,
        )
    return TrainingRun(directory)
