"""The optimizer as it was at a checkpoint, beside the user's own.

Synopsis:

    with recorded_state(model, run[-1]) as state:
        state.optimizer.iterations                  # those of the checkpoint
        state.slot("_velocities", variable)         # read when it is asked for

    optimizer = initial_optimizer(model, run)       # all of it, in memory
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_tracin.runs.checkpoint import Checkpoint
from keras_tracin.runs.run import TrainingRun

_WEIGHTS_IN_KERAS_FILE = "model.weights.h5"


@dataclasses.dataclass(frozen=True)
class RecordedState:
    """The state of an optimizer in a checkpoint's file.

    Slots are as large as the weights, and are read one by one.

    Attributes:
        optimizer: a new one of the model's kind, with the scalars that were
            recorded; its slots are empty. For `LossScaleOptimizer`, the inner
            one.
        variables: the variables that it trains.
    """

    optimizer: Any
    variables: Sequence[keras.Variable]
    _arrays: Sequence[h5py.Dataset]
    _places: Mapping[int, int]  # id of a variable of the optimizer: where

    def slot(self, name: str, variable: keras.Variable) -> h5py.Dataset:
        """The slot of one variable, as it lies in the file.

        Args:
            name: the name of the optimizer's attribute, a list of slots.
            variable: one of `variables`.
        """
        ids = [id(v) for v in self.variables]
        own = getattr(self.optimizer, name)[ids.index(id(variable))]
        return self._arrays[self._places[id(own)]]


@contextlib.contextmanager
def recorded_state(
    model: keras.Model, checkpoint: Checkpoint
) -> Iterator[RecordedState]:
    """Opens the optimizer's state that was recorded with a checkpoint.

    The model's own optimizer is not touched.

    Args:
        model: a compiled model, whose optimizer is of the kind and has the
            hyperparameters that it was trained with.
        checkpoint: with the optimizer's state in its file, as
            `TracInCheckpoint` and Keras's `ModelCheckpoint` write it.

    Raises:
        ValueError: if the model has no optimizer, or the file holds no state,
            or that of another optimizer.
    """
    variables = model.trainable_variables
    optimizer = _built_twin(model, list(map(_stand_in, variables)))
    own = optimizer.variables
    places = {id(v): at for at, v in enumerate(own)}
    shapes = [tuple(v.shape) for v in own]
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    for slots in vars(inner).values():
        if isinstance(slots, list) and len(slots) == len(variables):
            for slot, variable in zip(slots, variables, strict=True):
                if id(slot) in places:
                    lengths = [variable.shape[n - 1] for n in slot.shape]
                    shapes[places[id(slot)]] = tuple(lengths)
    with _open(checkpoint.path) as arrays:
        _check_state(optimizer, checkpoint.path, arrays, shapes)
        for variable, array in zip(own, arrays, strict=True):
            if array.shape == () == tuple(variable.shape):
                variable.assign(array[()])
        yield RecordedState(inner, variables, arrays, places)


def initial_optimizer(
    model: keras.Model, run: TrainingRun
) -> keras.optimizers.Optimizer:
    """A new optimizer in the state that a run began with.

    For `LossScaleOptimizer`, this is the inner one.

    Raises:
        ValueError: as `recorded_state`, but that an optimizer which had
            not made a step then needs no state in the file.
    """
    optimizer = _built_twin(model, model.trainable_variables)
    assert run.initial is not None
    with _open(run.initial) as arrays:
        if arrays and arrays[0][()] > 0:  # its count of iterations
            own = optimizer.variables
            shapes = [tuple(v.shape) for v in own]
            _check_state(optimizer, run.initial, arrays, shapes)
            for variable, array in zip(own, arrays, strict=True):
                variable.assign(np.asarray(array))
    return getattr(optimizer, "inner_optimizer", optimizer)


def _stand_in(variable: keras.Variable) -> keras.Variable:
    """A small variable whose slots tell the shapes of the variable's own.

    Its axes have the lengths 1, 2, 3, …: that of a slot's axis says which axis
    of the variable it belongs to, and an optimizer that keeps less than one
    number for each weight, as Adafactor does, has slots of fewer axes.
    """
    shape = tuple(range(1, len(variable.shape) + 1))
    return keras.Variable(np.zeros(shape), dtype=variable.dtype)


def _built_twin(model: keras.Model, variables: Sequence[keras.Variable]) -> Any:
    if getattr(model, "optimizer", None) is None:
        raise ValueError(
            "The recorded state of the optimizer says nothing without its "
            f"kind. Received the model {model.name!r} without an optimizer; "
            "compile it as for training."
        )
    optimizer = _twin(model.optimizer)
    optimizer.build(variables)
    return optimizer


def _check_state(
    optimizer: Any,
    path: Path,
    arrays: Sequence[h5py.Dataset],
    shapes: Sequence[tuple],
) -> None:
    """Raises ValueError unless a file holds variables of these shapes."""
    if [array.shape for array in arrays] != list(shapes):
        raise ValueError(
            f"{path} does not hold the state of the model's "
            f"optimizer. Received a file with {len(arrays)} arrays of state, "
            f"expected the {len(shapes)} of {type(optimizer).__name__}. "
            "Compile the model with the optimizer it was trained with."
        )


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


@contextlib.contextmanager
def _open(path: Path) -> Iterator[list[h5py.Dataset]]:
    """The optimizer's variables in a weights file, in its order."""
    with contextlib.ExitStack() as stack:
        if path.suffix == ".keras":
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            archive = stack.enter_context(zipfile.ZipFile(path))
            path = Path(archive.extract(_WEIGHTS_IN_KERAS_FILE, folder))
        file = stack.enter_context(h5py.File(path))
        group = file.get("optimizer/vars", {})
        yield [group[name] for name in sorted(group, key=int)]
