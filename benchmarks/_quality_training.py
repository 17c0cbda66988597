"""Many trainings of one network, and recorded trainings to score."""

import dataclasses
import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf

import keras_tracin as kt
from benchmarks._quality_settings import Setting
from keras_tracin.runs import run_weights


class Trainer:
    """Trains the same network repeatedly, in one compiled loop.

    It is like `fit`, except that epochs follow each other without an incomplete
    batch between them.

    Args:
        setting: the network and its training.
    """

    def __init__(self, setting: Setting):
        self._setting = setting
        self._model = setting.compiled(0)
        optimizer = self._model.optimizer
        optimizer.build(self._model.trainable_variables)
        self._state = [
            (v, keras.ops.convert_to_numpy(v)) for v in optimizer.variables
        ]

    def __call__(self, train: tuple, seed: int = 0) -> keras.Model:
        """Trains the model from the start; always returns the same object."""
        start = self._setting.compiled(seed)
        for variable, other in zip(
            self._model.variables, start.variables, strict=True
        ):
            variable.assign(other)
        for variable, value in self._state:
            variable.assign(value)
        x, y = map(tf.constant, train)
        self._run(x, y, self._order(len(x), seed))
        return self._model

    def _order(self, count: int, seed: int) -> np.ndarray:
        """Indices of the examples in each batch, `[steps, batch_size]`."""
        rng = np.random.default_rng(seed)
        epochs, size = self._setting.epochs, self._setting.batch_size
        order = np.concatenate([rng.permutation(count) for _ in range(epochs)])
        steps = len(order) // size
        return order[: steps * size].reshape(steps, size).astype(np.int32)

    @functools.cached_property
    def _run(self):
        model, loss = self._model, self._setting.loss
        weights = model.trainable_variables

        def step(x, y, rows):
            with tf.GradientTape() as tape:
                y_pred = model(tf.gather(x, rows), training=True)
                value = loss(tf.gather(y, rows), y_pred)
            grads = tape.gradient(value, [v.value for v in weights])
            model.optimizer.apply(grads, weights)

        @tf.function(reduce_retracing=True)
        def run(x, y, order):
            for at in tf.range(tf.shape(order)[0]):
                step(x, y, order[at])

        return run


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model, and its run, with a checkpoint of each epoch or more."""

    model: keras.Model
    run: kt.TrainingRun


def recorded(setting: Setting, train, seed: int, folder: pathlib.Path):
    """Trains on all examples by `fit`, or loads the training from disk."""
    return fit_once(
        setting.compiled(seed),
        train,
        folder / f"run-{seed}",
        setting.epochs,
        setting.batch_size,
        save_freq=setting.save_freq,
    )


def fit_once(
    model: keras.Model,
    train,
    directory: pathlib.Path,
    epochs: int,
    batch_size: int,
    validation_data=None,
    save_freq: int | str = "epoch",
) -> Trained:
    """Trains a compiled model, or loads the training from disk."""
    done = directory / "done"
    if not done.is_file():
        callback = kt.TracInCheckpoint(
            directory, save_freq=save_freq, overwrite=True
        )
        model.fit(
            *train,
            epochs=epochs,
            batch_size=batch_size,
            validation_data=validation_data,
            verbose=0,
            callbacks=[callback],
        )
        done.touch()
    run = kt.TrainingRun(directory)
    with run_weights(model) as load:
        load(run[-1])
        values = model.get_weights()
    model.set_weights(values)
    return Trained(model, run)
