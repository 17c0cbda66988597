"""Trains with `model.fit` and records every batch.

Records of `TracInCheckpoint` suffice for methods that use checkpoints. Methods
that replay training also need its batches, whose ids `fit` does not reveal:
here `fit` reads batches with known ids.

Synopsis:

    history = kt.record_training(model, (x, y), "runs/digits", epochs=10)
    kt.UnrolledInfluence(model, (x, y), "runs/digits")
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.trace.batches import TrainingBatches
from keras_tracin.trace.observing import check_observable, fit_with_observer
from keras_tracin.trace.recording import Recording, recorded_history


@exclusive_access
def record_training(
    model: keras.Model,
    train: Any,
    directory: str | os.PathLike,
    *,
    epochs: int,
    batch_size: int = 32,
    seed: int = 0,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    resume: bool = True,
    verbose: str | int = 0,
) -> keras.callbacks.History:
    """Trains with `model.fit` and records what replaying it needs.

    The directory holds a `TrainingRun`, for every method, with a checkpoint at
    the end of each epoch. Beside learning rates, it has the ids of each step's
    batch and the states of random number generators.

    Example:
    ```python
    kt.record_training(model, (x, y), "runs/digits", epochs=10)
    kt.UnrolledInfluence(model, (x, y), "runs/digits").influence(test)
    ```

    Args:
        model: the built and compiled model to train.
        train: arrays `(x, y[, sample_weight])`, shuffled here each epoch; or
            a batched dataset with ids (`with_ids`), in its own order.
        directory: directory to write the run to.
        epochs: number of epochs at the end of which training stops.
        batch_size: batch size for arrays; a dataset has its own.
        seed: seed of the order of arrays.
        class_weight: class weights for `model.fit`.
        callbacks: callbacks for `model.fit`.
        resume: If true, training continues after the last epoch recorded in
            `directory`; if false, it begins anew and replaces the record.
        verbose: verbosity of `model.fit`.

    Returns:
        The history of all epochs.

    Raises:
        TypeError: if `train` is a dataset without ids.
        ValueError: if the model is not built, if a batch does not make one
            update, or if `directory` holds anything else.
    """
    check_observable(model)
    settings = {
        "kind": "training",
        "batch_size": batch_size,
        "seed": seed,
        "optimizer": type(model.optimizer).__name__,
    }
    recording = Recording.open(Path(directory), model, settings, resume)
    fit_with_observer(
        model,
        TrainingBatches(train, batch_size, seed, recording.num_epochs, model),
        _NoMeasurements(),
        recording,
        epochs=epochs,
        class_weight=class_weight,
        callbacks=callbacks,
        verbose=verbose,
    )
    return recorded_history(Path(directory))


class _NoMeasurements:
    """An observer that measures nothing."""

    def before(self, ids: np.ndarray, data: Any, rate: float) -> None:
        return None

    def after(self, before: None, stepped: bool) -> dict[str, Any]:
        return {}

    def saves_after(self, step: int) -> bool:
        return False

    def is_full(self, rows: list[dict[str, Any]]) -> bool:
        return False

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return {
            "learning_rate": np.array([row["learning_rate"] for row in rows]),
            "ids": np.concatenate([row["ids"] for row in rows]),
            "batch_sizes": np.array([len(row["ids"]) for row in rows]),
        }
