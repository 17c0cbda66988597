"""The optimizer as it was at a checkpoint, beside the user's own.

Synopsis:

    optimizer = recorded_optimizer(model, run[-1])
    optimizer.iterations        # those of the checkpoint
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_tracin.runs.run import Checkpoint, TrainingRun

_WEIGHTS_IN_KERAS_FILE = "model.weights.h5"


def recorded_optimizer(
    model: keras.Model, checkpoint: Checkpoint
) -> keras.optimizers.Optimizer:
    """A new optimizer of the model's kind, in the state that was recorded.

    The model's own optimizer is not touched. Of `LossScaleOptimizer` it is the
    inner one.

    Args:
        model: a compiled model, whose optimizer is of the kind and has the
            hyperparameters that it was trained with.
        checkpoint: with the optimizer's state in its file, as
            `TracInCheckpoint` and Keras's `ModelCheckpoint` write it.

    Raises:
        ValueError: if the model has no optimizer, or the file holds no state,
            or that of another optimizer.
    """
    optimizer = _built_twin(model)
    _fill(optimizer, checkpoint.path, _read(checkpoint.path))
    return getattr(optimizer, "inner_optimizer", optimizer)


def initial_optimizer(
    model: keras.Model, run: TrainingRun
) -> keras.optimizers.Optimizer:
    """The same for the beginning of a run.

    Raises:
        ValueError: as `recorded_optimizer`, but that an optimizer which had
            not made a step then needs no state in the file.
    """
    optimizer = _built_twin(model)
    assert run.initial is not None
    values = _read(run.initial)
    if values and values[0] > 0:  # its count of iterations
        _fill(optimizer, run.initial, values)
    return getattr(optimizer, "inner_optimizer", optimizer)


def _built_twin(model: keras.Model) -> Any:
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The recorded state of the optimizer says nothing without its "
            f"kind. Received the model {model.name!r} without an optimizer; "
            "compile it as for training."
        )
    optimizer = _twin(model.optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


def _fill(optimizer: Any, path: Path, values: list[np.ndarray]) -> None:
    """Gives an optimizer the values of its variables."""
    shapes = [tuple(v.shape) for v in optimizer.variables]
    if [value.shape for value in values] != shapes:
        raise ValueError(
            f"{path} does not hold the state of the model's "
            f"optimizer. Received a file with {len(values)} arrays of state, "
            f"expected the {len(shapes)} of {type(optimizer).__name__}. "
            "Compile the model with the optimizer it was trained with."
        )
    for variable, value in zip(optimizer.variables, values, strict=True):
        variable.assign(value)


def _twin(optimizer: Any) -> Any:
    """A new one with the same hyperparameters, but for its schedule."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return keras.optimizers.LossScaleOptimizer(
            _twin(optimizer.inner_optimizer)
        )
    config = optimizer.get_config()
    # A schedule of the user's may not be made again, and is not needed: but
    # with one, the rate is no variable.
    scheduled = isinstance(
        optimizer._learning_rate,
        keras.optimizers.schedules.LearningRateSchedule,
    )
    stand_in: Any = 0.1
    if scheduled:
        stand_in = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 1.0)
    config["learning_rate"] = stand_in
    return type(optimizer)(**config)


def _read(path: Path) -> list[np.ndarray]:
    """The optimizer's variables in a weights file, in its order."""
    if path.suffix == ".keras":
        with (
            tempfile.TemporaryDirectory() as folder,
            zipfile.ZipFile(path) as archive,
        ):
            return _read(Path(archive.extract(_WEIGHTS_IN_KERAS_FILE, folder)))
    with h5py.File(path) as file:
        group = file.get("optimizer/vars", {})
        return [np.asarray(group[name]) for name in sorted(group, key=int)]
