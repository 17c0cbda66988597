"""Lends a model the weights of checkpoints."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.state import Untracked
from keras_tracin.runs import exact
from keras_tracin.runs.checkpoint import Checkpoint
from keras_tracin.runs.saved import (
    LOADING_ERRORS,
    RECORD_AGAIN,
    check_built,
    check_loaded,
    check_saved,
    load_saved,
    saved_at,
)

_WEIGHTS_IN_KERAS_FILE = "model.weights.h5"
_MARK = 0.7390625  # all of a weight's elements, before an adopted file is read
_SLICE = 2**22  # numbers to look at together


@contextlib.contextmanager
def run_weights(
    model: keras.Model,
) -> Iterator[Callable[[Checkpoint | Path], None]]:
    """Lends a model the weights of checkpoints.

    After the block, and also after an exception or Ctrl-C in it, all of
    `model.variables` have the values they had before: weights, statistics of
    BatchNormalization, states of random seeds; so do plain `tf.Variable`s that
    layers hold. The optimizer and the metrics are not touched, though the
    files hold their states too. Other threads that score a model wait until
    the block ends; those that use or train this one would use the weights that
    it is lent.

    Its own weights are held once, and on no accelerator; until others are
    loaded they take no memory at all where the model is on a CPU.

    Example:
    ```python
    with run_weights(model) as load:
        for checkpoint in TrainingRun("runs/digits"):
            load(checkpoint)
            print(checkpoint.epoch, model(x))
    ```

    Args:
        model: A built model, compiled or not.

    Yields:
        A function that takes a `Checkpoint` (or a path, such as
        `TrainingRun.initial`) and gives the model its weights. It raises
        ValueError if the file is missing or damaged, the shapes of the model's
        weights differ from the recorded ones, a weight is NaN, or the file
        holds other weights than training had.

    Raises:
        ValueError: The model is not built.
        RuntimeError: At the end, if the model was trained meanwhile, in the
            block or by another thread.
    """
    check_built(model)
    with exclusive_access:
        loan = _Loan(model)
        try:
            yield loan.load
        except Exception as error:
            loan.check(error)  # it may have failed because of that
            raise
        finally:
            loan.end()
        loan.check()


class _Loan:
    """Other weights for a model, and its own kept for it."""

    def __init__(self, model: keras.Model):
        self._model = model
        self._saved = [(v, _present_value(v)) for v in model.variables]
        self._untracked = Untracked(model)
        self._count = _count_of_steps(model)
        self._loaded = False

    def load(self, checkpoint: Checkpoint | Path) -> None:
        """Gives the model the weights of a checkpoint."""
        if self._loaded:
            # What was loaded before makes room for what comes.
            for variable, value in self._saved:
                if variable.value.device == value.device:
                    variable.assign(value)
        self._loaded = True
        _load(self._model, checkpoint)

    def end(self) -> None:
        """Gives the model its own weights back.

        Those of one that was trained meanwhile, and had been lent no others,
        are what training made of them.
        """
        if not self._loaded and self._was_trained:
            return
        for variable, value in self._saved:
            variable.assign(value)
        self._untracked.restore()
        exact.refresh(self._model)

    def check(self, cause: Exception | None = None) -> None:
        """Raises RuntimeError if the model was trained meanwhile."""
        if not self._was_trained:
            return
        lost = ""
        if self._loaded:
            lost = (
                " It trained on the weights of checkpoints that it was lent, "
                "and has those of before again: what was trained is lost, and "
                "a run that recorded it holds it wrongly."
            )
        raise RuntimeError(
            f"The model {self._model.name!r} was trained while it was scored, "
            "so the scores are wrong. Received an optimizer that went from "
            f"update {self._count} to {_count_of_steps(self._model)}, expected "
            f"none.{lost} Wait for one to end before the other begins, or "
            "score a second model with the same architecture."
        ) from cause

    @property
    def _was_trained(self) -> bool:
        return _count_of_steps(self._model) != self._count


def _present_value(variable: keras.Variable) -> tf.Tensor:
    """The present value of a variable, in the memory of the computer.

    Where the variable is there too, this is no copy: the variable gets other
    memory once it is assigned to.
    """
    with tf.device("CPU:0"):
        return tf.identity(variable.value)


def _count_of_steps(model: keras.Model) -> int | None:
    """The updates by the model's optimizer; None for one without."""
    iterations = getattr(getattr(model, "optimizer", None), "iterations", None)
    if iterations is None:
        return None
    return int(keras.ops.convert_to_numpy(iterations))


def check_checkpoint(model: keras.Model, checkpoint: Checkpoint) -> None:
    """Checks that a checkpoint can be put into a model, without doing so.

    Raises:
        ValueError: A file is missing or damaged, or was written from a model
            whose weights have other shapes; or Keras has merged the model's
            LoRA in it. Of adopted files little is known: they only have to be
            there.
    """
    check_saved(model, checkpoint.saved)


def _load(model: keras.Model, checkpoint: Checkpoint | Path) -> None:
    if isinstance(checkpoint, Checkpoint):
        saved = checkpoint.saved
    else:
        saved = saved_at(Path(checkpoint))
    check_saved(model, saved)
    marks = [] if saved.digests else _mark(model)
    try:
        load_saved(model, saved, functools.partial(_load_file, model))
    except LOADING_ERRORS as error:
        raise ValueError(
            f"The weights in {saved.path} could not be loaded into the model "
            f"{model.name!r}. Expected an undamaged file written from a model "
            f"of the same architecture. Keras says: {error}"
        ) from error
    _check_marks(marks, saved.path)
    _check_numbers(model, saved.path)
    check_loaded(model, saved)


def _mark(model: keras.Model) -> list[tuple[keras.Variable, np.ndarray]]:
    """Gives trainable weights a value that no file has."""
    marks = []
    for weight in model.trainable_weights:
        if keras.backend.is_float_dtype(weight.dtype):
            weight.assign(keras.ops.full(weight.shape, _MARK, weight.dtype))
            # A copy: a view would keep all of the weight's old memory.
            mark = np.ravel(keras.ops.convert_to_numpy(weight))[:1].copy()
            marks.append((weight, mark))
    return marks


def _check_marks(
    marks: Iterable[tuple[keras.Variable, np.ndarray]], path: Path
) -> None:
    """Raises ValueError if loading has left a weight as it was."""
    for weight, mark in marks:
        if np.all(keras.ops.convert_to_numpy(weight) == mark):
            raise ValueError(
                f"{path} has no value for the weight {weight.path}, expected "
                "one for each trainable weight: Keras leaves it out when it "
                f"saves its layer. {RECORD_AGAIN}"
            )


def _load_file(model: keras.Model, path: Path) -> None:
    """Loads a weights file, but not the optimizer's and metrics' states."""
    with contextlib.ExitStack() as stack:
        if path.suffix == ".keras":
            # Keras can skip objects only when it reads a .weights.h5 file.
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            archive = stack.enter_context(zipfile.ZipFile(path))
            path = Path(archive.extract(_WEIGHTS_IN_KERAS_FILE, folder))
        model.load_weights(path, objects_to_skip=_other_objects(model))


def _other_objects(model: keras.Model) -> list[Any]:
    """The objects that Keras would load beside weights.

    They are optimizers, metrics and losses, also those of a compiled model
    inside the model, and those in containers.
    """
    kinds = (keras.Optimizer, keras.Metric, keras.Loss)
    objects: list[Any] = list(model.metrics)
    for layer in model._flatten_layers():
        for value in vars(layer).values():
            if isinstance(value, dict):
                members = list(value.values())
            elif isinstance(value, (list, tuple)):
                members = list(value)
            else:
                members = [value]
            objects += [m for m in members if isinstance(m, kinds)]
    return objects


def _check_numbers(model: keras.Model, path: Path) -> None:
    """Raises ValueError if a weight is NaN."""
    for weight in model.weights:
        if not keras.backend.is_float_dtype(weight.dtype):
            continue
        if _has_nan(weight.value):
            raise ValueError(
                f"{path}: the weight {weight.path} contains NaN, expected "
                "numbers. Training had diverged by then: leave out this "
                "checkpoint and later ones with TrainingRun.select."
            )


def _has_nan(value: Any) -> bool:
    """Whether a tensor holds NaN, without anything else of its size."""
    if value.shape.num_elements() <= _SLICE:
        return bool(np.isnan(keras.ops.convert_to_numpy(value)).any())
    numbers = tf.reshape(value, [-1])
    for start in range(0, numbers.shape[0], _SLICE):
        part = numbers[start : start + _SLICE]
        if np.isnan(keras.ops.convert_to_numpy(part)).any():
            return True
    return False
