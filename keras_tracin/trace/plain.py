"""Training as `model.fit` does it, with a record of every batch.

What `TracInCheckpoint` writes is enough for methods that look at checkpoints.
To make a training again one has to know its batches as well, and `fit` tells
nobody: here it reads batches whose ids are known.

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

from keras_tracin.models.exclusive import exclusively
from keras_tracin.trace.recording import Recording, recorded_history
from keras_tracin.trace.source import Source
from keras_tracin.trace.watching import check_can_be_watched, watched_fit


@exclusively
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
    """Trains with `model.fit` and records all that making it again takes.

    The directory is that of a `TrainingRun` with a checkpoint at the end of
    each epoch, for every method; beside the rates, it has the ids of each
    step's batch and the states of random numbers.

    Example:
    ```python
    kt.record_training(model, (x, y), "runs/digits", epochs=10)
    kt.UnrolledInfluence(model, (x, y), "runs/digits").influence(test)
    ```

    Args:
        model: a built and compiled model; it is trained.
        train: arrays `(x, y[, sample_weight])`, shuffled here each epoch; or
            a batched dataset with ids (`with_ids`), in its own order.
        directory: where the run is written.
        epochs: how long to train.
        batch_size: for arrays; a dataset has its own.
        seed: of the order of arrays.
        class_weight: as for `model.fit`.
        callbacks: as for `model.fit`.
        resume: go on after the last epoch recorded in `directory`; False
            begins anew and replaces what is there.
        verbose: as for `model.fit`.

    Returns:
        The history of all epochs.

    Raises:
        TypeError: if `train` is a dataset without ids.
        ValueError: if the model is not built, if a batch does not make one
            update, or if `directory` holds anything else.
    """
    check_can_be_watched(model)
    settings = {
        "kind": "training",
        "batch_size": batch_size,
        "seed": seed,
        "optimizer": type(model.optimizer).__name__,
    }
    recording = Recording.open(Path(directory), model, settings, resume)
    watched_fit(
        model,
        Source(train, batch_size, seed, recording.done, model),
        _Bystander(),
        recording,
        epochs=epochs,
        class_weight=class_weight,
        callbacks=callbacks,
        verbose=verbose,
    )
    return recorded_history(Path(directory))


class _Bystander:
    """Looks at nothing but what is recorded anyway."""

    def before(self, ids: np.ndarray, data: Any, rate: float) -> None:
        return None

    def after(self, seen: None, stepped: bool) -> dict[str, Any]:
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
