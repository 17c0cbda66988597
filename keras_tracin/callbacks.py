"""The callback that records a training run while `model.fit` trains."""

from __future__ import annotations

import contextlib
import operator
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_tracin.engine.distribution import worker_of
from keras_tracin.runs import Onlooker, RunWriter
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.beside import digests_beside
from keras_tracin.runs.steps import StepLog, Steps, record_steps, stop_recording
from keras_tracin.runs.updates import count_updates, weight_marks
from keras_tracin.storage import files


class TracInCheckpoint(keras.callbacks.Callback):
    """Records a training run: checkpoints and the learning rate of each step.

    This is all that `TracIn` needs to know of the training: the weights w_k
    and the rates η_k of checkpoints (section D of the paper). A *step* is an
    update that the optimizer applied; a batch may make several
    (`steps_per_execution`) or none (gradient accumulation, loss scaling). The
    rate recorded for a step is the one that this update used, as the update
    itself computed it, and so are the variables that it was of. Where several
    optimizers of the model update different variables one after another, this
    is one step, with a rate for each of them. The model must hold them as
    attributes.

    A loop of `train_on_batch` is recorded too, if it calls the callback as
    `fit` does: `on_train_begin`, `on_train_end`, and `on_epoch_begin` and
    `on_epoch_end`, without which all of it is one epoch. The first `fit` with
    the callback traces the train step anew.

    A directory holds one run. Training that goes on from its last state, in
    the same process or in another, continues it, also after the model was
    compiled again; steps and epochs go on counting. Training that goes on from
    an earlier recorded state, where `keras.callbacks.BackupAndRestore` put
    back an older epoch for example, drops what was recorded later, with a
    warning. List this callback before `BackupAndRestore`, so that the run is
    never behind the backup. An interrupted `fit` loses the rates recorded
    since the last epoch end or snapshot, nothing else.

    Under a strategy of several processes, `MultiWorkerMirroredStrategy`, each
    of them makes the callback and only the first (the chief) writes: variables
    are alike in all. The others count along. To read the run, they wait until
    the first has written it.

    One training at a time can record into a directory: another one, in this
    process or in another, is refused. A process that was killed is in nobody's
    way.

    Where a snapshot cannot be written (the disk is full, the directory is
    read-only), training stops with an `OSError`: a run with a gap would be of
    no use to attribution. Nothing saved before is lost, and the error says how
    to go on from there. A directory that cannot be written to at all is found
    out before the first step.

    Example:
    ```python
    checkpoints = TracInCheckpoint("runs/digits", epochs=2)
    model.fit(x, y, epochs=10, callbacks=[checkpoints])

    run = TrainingRun("runs/digits")  # epochs 2, 4, 6, 8, 10
    ```

    Args:
        directory: Where the run is written. It is made if needed. A relative
            one is below the directory that is current now.
        epochs: At which epoch ends to save weights. None for all of them, an
            int k for every k-th, an iterable of epochs counted from 1, or a
            callable `(epoch, logs) -> bool`. Epochs count over the whole run.
        save_freq: `"epoch"`, or an int to save weights every that many steps
            of the run instead (at the end of the batch in which such a step
            falls).
        overwrite: Whether to replace a run found in the directory when this
            callback first sees it. A second `fit` with it continues its own.
        verbose: 1 to print a line for each snapshot, 0 to be silent.

    What is saved: all weights as they are (those of LoRA too, which Keras
    merges), BatchNormalization statistics and the optimizer's state. To go on
    in another process, `TrainingRun(directory).restore(model)` puts them into
    a compiled model. The weights before the first step are saved too, but do
    not count as a checkpoint. Where no update was applied since the last
    snapshot, no second one of the same step is made.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has an impossible value; or, as training
            begins, the directory holds a run of another model or in another
            state than this model's, or another training records into it, or an
            optimizer's rates cannot be told; or, at the end of an epoch, it
            had steps that were not recorded.
        OSError: The run cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        epochs: int | Iterable[int] | Callable[[int, dict], bool] | None = None,
        save_freq: str | int = "epoch",
        overwrite: bool = False,
        verbose: int = 0,
    ):
        super().__init__()
        # The process may go to another directory while it trains.
        self.directory = files.absolute_directory(directory)
        self.save_freq = _checked_save_freq(save_freq, epochs)
        self.overwrite = overwrite
        self.verbose = verbose
        self._is_chosen = _epoch_filter(epochs)
        self._opened = False
        self._writer: Any = None  # a RunWriter or Onlooker while training
        self._steps = StepLog(self._open)
        self._epoch_index = 0  # Keras's number of the epoch
        self._epoch = 0  # the run's number of it, counted from 1
        self._step_at_epoch_begin = 0
        self._counted = 0  # by the optimizers, when the epoch began
        self._marks: dict[int, int] | None = {}  # of weights, by position
        # Keras may then call back while the next batch trains. It is only
        # with an int that something is done, and must be in time.
        self.async_safe = save_freq == "epoch"

    def on_train_begin(self, logs=None):
        self._close()  # A fit that failed did not.
        self._steps = StepLog(self._open)
        record_steps(self.model, self._steps)

    def on_epoch_begin(self, epoch, logs=None):
        # Another callback may have compiled the model anew.
        record_steps(self.model, self._steps)
        self._epoch_index = epoch
        self._counted = count_updates(self.model)
        if self._writer is not None:
            self._begin_epoch(self._epoch + 1)

    def on_train_batch_end(self, batch, logs=None):
        if self.save_freq == "epoch":
            return
        if self.model.train_function is not self._steps.function:
            # Another callback has made it anew.
            record_steps(self.model, self._steps)
        if self._writer is None:
            return
        last_saved = self._writer.last_saved_step
        due = (last_saved // self.save_freq + 1) * self.save_freq
        self._steps.catch_up(due - self._writer.last_step)
        step = self._writer.last_step + self._steps.num_steps
        if step // self.save_freq > last_saved // self.save_freq:
            self._write(logs, epoch_end=False, save_weights=True)

    def on_epoch_end(self, epoch, logs=None):
        if self._writer is None:
            self._refuse_missed_steps()
            return  # There was no batch.
        chosen = self.save_freq == "epoch" and self._is_chosen(
            self._epoch, dict(logs or {})
        )
        self._write(logs, epoch_end=True, save_weights=chosen)
        if self._writer.last_step == self._step_at_epoch_begin:
            warnings.warn(
                f"model.optimizer applied no update in epoch {self._epoch}, so "
                "the epoch has no steps in the recorded run. Only updates by "
                "model.optimizer are recorded.",
                stacklevel=2,
            )

    def on_train_end(self, logs=None):
        try:
            self._steps.catch_up()
            if self._writer is not None and self._steps.num_steps:
                # A loop of the user's own, which tells of no epochs.
                self.on_epoch_end(self._epoch_index, logs)
        finally:
            stop_recording(self._steps)
            self._close()
            self.set_model(None)

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open(self, iterator) -> None:
        """Opens the run, right before the first batch.

        By then every callback that sets the model up has done so (for example
        BackupAndRestore), and the data show how to build an unbuilt model.
        """
        _build(self.model, iterator)
        index, _ = worker_of(self.model.distribute_strategy)
        if index:
            self._writer = Onlooker()
            self._begin_epoch(self._epoch_index + 1)
            return
        replace = self.overwrite and not self._opened
        with self._explaining():
            if replace or not run_manifest.exists(self.directory):
                begin = RunWriter.create
            else:
                begin = RunWriter.reopen
            self._writer = begin(self.directory, self.model, self.params)
        self._opened = True
        self._marks = weight_marks(self.model)
        self._begin_epoch(max(self._epoch_index, self._writer.last_epoch) + 1)

    def _refuse_missed_steps(self) -> None:
        """Raises ValueError if the epoch had steps but began no run."""
        missed = count_updates(self.model) - self._counted
        if missed > 0:
            raise ValueError(
                f"The model's optimizers made {missed} updates in this epoch, "
                "but the run has not begun: model.train_function was not the "
                "one that TracInCheckpoint had put there. It records model.fit "
                "and model.train_on_batch. If another callback compiles the "
                "model or makes its train function anew, list TracInCheckpoint "
                "after it; a loop that applies gradients itself belongs into "
                "the model's train_step."
            )

    def _warn_of_unknown_updates(self, steps: Steps) -> None:
        """Warns, once in a fit, of weights that changed but not by a step."""
        if not self._marks:
            return
        before, self._marks = self._marks, weight_marks(self.model)
        known = set().union(*steps.updated)
        paths = [
            self.model.weights[position].path
            for position, mark in self._marks.items()
            if mark != before.get(position) and position not in known
        ]
        if not paths:
            return
        self._marks = None
        warnings.warn(
            f"In epoch {self._epoch} the weights {paths} changed, but by no "
            "optimizer that the model holds. In this run they count as frozen, "
            "and scores leave them out. If an optimizer trains them, make it "
            "an attribute of the model, `self.optimizer_2 = ...`, before fit.",
            stacklevel=2,
        )

    def _begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        self._step_at_epoch_begin = self._writer.last_step

    def _write(self, logs, *, epoch_end: bool, save_weights: bool) -> None:
        """Writes the steps since the last write, and a snapshot if wanted."""
        steps = self._steps.take()
        self._warn_of_unknown_updates(steps)
        arrays = {"learning_rate": steps.learning_rates}
        if len(steps.updated) > 1:
            arrays["rates"] = steps.rates
        with self._explaining():
            path = self._writer.append(
                self.model,
                arrays,
                epoch=self._epoch,
                logs=_scalars(logs or {}),
                epoch_end=epoch_end,
                save_weights=save_weights,
                updated=steps.updated,
                notes={
                    "weighted": steps.weighted,
                    "added_losses": steps.added_losses,
                    "beside": digests_beside(self.model),
                },
            )
        if path and self.verbose:
            step, shown = self._writer.last_step, files.shown(path)
            print(f"\nEpoch {self._epoch}: saved step {step} to {shown}")

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """Says what became of the run when it cannot be written."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"TracInCheckpoint could not write to {self.directory}, so "
                f"training stops: {error}. {self._what_is_safe()}",
            ) from error

    def _what_is_safe(self) -> str:
        if self._writer is None:
            return "Pass a directory that can be written to, with enough room."
        return (
            "Everything saved before is intact. Make room, then go on with "
            f"{self._writer.restoring} and model.fit."
        )


def _build(model: keras.Model, iterator) -> None:
    """Creates the weights of a model that Keras would build in its first step.

    The initial weights are part of the run, and so must exist before.
    """
    if model.built:
        return
    x, _, _ = keras.utils.unpack_x_y_sample_weight(iterator.element_spec)
    try:
        model(
            keras.tree.map_structure(
                lambda spec: keras.KerasTensor(spec.shape, spec.dtype.name), x
            )
        )
    except Exception as error:
        raise ValueError(
            f"The model {model.name!r} is not built, and its weights before "
            "training belong to the run, but it could not be built from the "
            "shapes of the data. Call it on a batch of data before model.fit."
        ) from error


def _scalars(logs: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are single numbers."""
    return {
        name: float(value)
        for name, value in logs.items()
        if np.ndim(value) == 0
        and np.issubdtype(np.asarray(value).dtype, np.number)
    }


def _checked_save_freq(save_freq, epochs):
    if save_freq == "epoch":
        return save_freq
    if isinstance(save_freq, bool) or not hasattr(save_freq, "__index__"):
        raise TypeError(
            f"Received save_freq={save_freq!r}, expected 'epoch' or a number "
            "of optimizer steps."
        )
    if operator.index(save_freq) < 1:
        raise ValueError(
            f"Received save_freq={save_freq}, expected at least 1 step."
        )
    if epochs is not None:
        raise ValueError(
            f"Received save_freq={save_freq} and epochs={epochs!r}, expected "
            "one of them: `epochs` selects among the ends of epochs."
        )
    return operator.index(save_freq)


def _epoch_filter(epochs) -> Callable[[int, dict], bool]:
    """The argument `epochs` as a function of the epoch and its logs."""
    if epochs is None:
        return lambda epoch, logs: True
    if callable(epochs):
        return lambda epoch, logs: bool(epochs(epoch, logs))
    is_count = hasattr(epochs, "__index__") and not np.ndim(epochs)
    values = [epochs] if is_count else epochs
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise TypeError(
            f"Received epochs={epochs!r}, expected None, a number, numbers, "
            "or a callable (epoch, logs) -> bool."
        )
    numbers = list(values)
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in numbers):
        raise TypeError(f"Received epochs={epochs!r}, expected whole numbers.")
    if not numbers or any(n < 1 for n in numbers):
        raise ValueError(
            f"Received epochs={epochs!r}, expected numbers from 1 on: epochs "
            "are counted from 1."
        )
    if is_count:
        return lambda epoch, logs: epoch % numbers[0] == 0
    return lambda epoch, logs: epoch in numbers
