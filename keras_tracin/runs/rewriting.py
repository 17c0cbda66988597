"""Lends a model changed weights, and its run checkpoints with changed ones.

Synopsis:

    def negate(model):
        for variable in model.trainable_variables:
            variable.assign(-variable)

    with changed_weights(model, run, negate) as other_run:
        kt.TracIn(model, train, other_run).influence(test)
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_tracin.runs import exact, run_files
from keras_tracin.runs.run import TrainingRun
from keras_tracin.runs.saved import saved_at
from keras_tracin.runs.weights import run_weights

_OPTIMIZER = "optimizer"  # the group of its state in a file of Keras


@contextlib.contextmanager
def changed_weights(
    model: keras.Model,
    run: TrainingRun | None,
    change: Callable[[keras.Model], None],
) -> Iterator[Any]:
    """Changes a model's weights, and those of all checkpoints of a run.

    The files of the run stay as they are: the others are in a temporary
    folder. After the block the model has its weights back. The changed run has
    the steps, the rates and the optimizer's states of the other one.

    Args:
        model: a built model.
        run: the run, or None.
        change: changes the weights that a model has.

    Yields:
        The changed run; None without one.
    """

    def apply() -> None:
        change(model)
        exact.refresh(model)

    with contextlib.ExitStack() as stack:
        if run is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            run = _rewritten(run, model, Path(folder), apply)
        with run_weights(model):
            apply()
            yield run


def _rewritten(
    run: TrainingRun,
    model: keras.Model,
    folder: Path,
    apply: Callable[[], None],
) -> TrainingRun:
    saved = []
    with run_weights(model) as load:
        for number, checkpoint in enumerate(run):
            load(checkpoint)
            apply()
            entry = run_files.save_weights(folder, model, number, digest="")
            path = folder / entry["file"]
            _copy_optimizer(checkpoint.path, path)
            saved.append(saved_at(path))
    return run.with_saved(saved)


def _copy_optimizer(source: Path, target: Path) -> None:
    """Gives a weights file the optimizer's state that another one has."""
    if source.suffix != ".h5":  # a whole model in one file, without a state
        return
    with h5py.File(source) as recorded, h5py.File(target, "r+") as rewritten:
        if _OPTIMIZER in rewritten:
            del rewritten[_OPTIMIZER]
        if _OPTIMIZER in recorded:
            recorded.copy(_OPTIMIZER, rewritten)
