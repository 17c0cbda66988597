"""The callback that records a training run while `model.fit` trains."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_tracin.engine.distribution import worker_of
from keras_tracin.models.kinds import check_is_model, warn_of_no_call
from keras_tracin.runs import Onlooker, RunWriter
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.beside import digests_beside
from keras_tracin.runs.building import build
from keras_tracin.runs.optimizers import (
    check_no_updates,
    count_updates,
    was_trained,
    weight_marks,
)
from keras_tracin.runs.part import check_part, layers_in, locate
from keras_tracin.runs.save_options import (
    check_save_freq,
    epoch_filter,
    scalar_metrics,
)
from keras_tracin.runs.steps import StepLog, Steps, record_steps, stop_recording
from keras_tracin.storage import files


class TracInCheckpoint(keras.callbacks.Callback):
    """Records a training run: checkpoints and the learning rate of each step.

    `TracIn` needs nothing else of the training: the weights w_k and the
    learning rates η_k of checkpoints (Pruthi et al. 2020, section D). A *step*
    is an update that the optimizer applied; a batch may make several
    (`steps_per_execution`) or none (gradient accumulation, loss scaling). For
    every step, the learning rate that the update used is recorded, and the
    variables that it changed. If several optimizers of the model update
    different variables one after another, this is one step, with a rate for
    each of them. The model must hold them as attributes.

    A loop of `train_on_batch` is recorded as well, if it calls the callback as
    `fit` does: `on_train_begin`, `on_train_end`, and `on_epoch_begin` and
    `on_epoch_end`, without which all of it is one epoch. The first `fit` with
    the callback traces the train step anew.

    A directory holds the run that led to the model. Training from its last
    state, in the same process or another, continues the run, also after the
    model was compiled again; steps and epochs are counted on. Otherwise what
    the directory held is kept as a run of its own, in `earlier-1` within it,
    with a warning: where a model that was not trained yet begins a new run, as
    when a script is run again; and where training goes on from an earlier
    recorded state, to which `EarlyStopping(restore_best_weights=True)` or
    `BackupAndRestore` went back. A trained model in a state that was not
    recorded is refused.

    List this callback before `BackupAndRestore`, so that the run is never
    behind the backup. An interrupted `fit` loses the rates recorded since the
    last end of an epoch or snapshot, nothing else.

    Under a strategy of several processes (`MultiWorkerMirroredStrategy`), every
    process creates the callback and only the first, the chief, writes: the
    variables are equal in all of them. The others only count steps, and must
    wait for the chief before they read the run.

    One training at a time can record into a directory; a second one, in this
    process or another, is refused. A killed process does not block later ones.

    If a snapshot cannot be written (the disk is full, the directory is
    read-only), training stops with an `OSError`, since attribution cannot use a
    run with a gap. Nothing saved before is lost, and the error says how to
    continue from there. A directory that cannot be written to at all is refused
    before the first step.

    Example:
    ```python
    checkpoints = TracInCheckpoint("runs/digits", epochs=2)
    model.fit(x, y, epochs=10, callbacks=[checkpoints])

    run = TrainingRun("runs/digits")  # epochs 2, 4, 6, 8, 10
    ```

    Args:
        directory: Directory to write the run to; it is created if needed. A
            relative path starts at the present working directory.
        epochs: Epochs at whose ends to save weights: None for all of them, an
            int k for every k-th, an iterable of epochs counted from 1, or a
            callable `(epoch, logs) -> bool`. Epochs are counted over the whole
            run.
        model: A part of the model that `fit` trains, to record alone: the
            discriminator of a GAN, the student of a distillation. Its steps
            are the updates of its variables. A snapshot holds its weights
            only, and no optimizer's state.
        save_freq: `"epoch"`, or the number of steps after which to save weights
            (at the end of the batch with that step).
        overwrite: If true, the first `fit` with this callback replaces the run
            in the directory, whose files are deleted; a second `fit`
            continues the new run.
        verbose: 1 to print a line for each snapshot, 0 to be silent.

    A snapshot holds all weights as they are (LoRA weights are not merged),
    statistics of BatchNormalization and the optimizer's state. To continue in
    another process, `TrainingRun(directory).restore(model)` puts them into a
    compiled model. The weights before the first step are saved as well, but are
    no checkpoint. No second snapshot is saved of the same step.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument has an impossible value; or, as training
            begins, the model was trained and is in no state of the run in the
            directory, or another training records into it, or an
            optimizer's learning rates cannot be determined; or, at the end of
            an epoch, it had steps that were not recorded.
        OSError: The run cannot be written.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        epochs: int | Iterable[int] | Callable[[int, dict], bool] | None = None,
        save_freq: str | int = "epoch",
        model: keras.Model | None = None,
        overwrite: bool = False,
        verbose: int = 0,
    ):
        super().__init__()
        if model is not None:
            check_is_model(model, needs_call=False)
        # The working directory may change during training.
        self.directory = files.absolute_directory(directory)
        self.save_freq = check_save_freq(save_freq, epochs)
        self.overwrite = overwrite
        self.verbose = verbose
        self._is_selected = epoch_filter(epochs)
        self._part = model
        self._opened = False
        self._writer: Any = None  # a RunWriter or Onlooker while training
        self._steps = StepLog(self._open, self._locate)
        self._epoch_index = 0  # number of the epoch in `fit`
        self._epoch = 0  # number of the epoch in the run, from 1
        self._step_at_epoch_begin = 0
        self._updates_before = 0  # updates before the epoch
        self._marks: dict[int, int] | None = {}  # of weights, by position
        # With "epoch" nothing happens at the ends of batches, and Keras may
        # call the callback while the next batch trains.
        self.async_safe = save_freq == "epoch"

    def set_model(self, model):
        """Takes the model that is trained, as `fit` passes it.

        Args:
            model: The model.

        Raises:
            TypeError: if it is no model of Keras 3.
        """
        if model is not None:  # Keras takes it away at the end
            check_is_model(model, needs_call=False)
        super().set_model(model)

    @property
    def _recorded(self) -> keras.Model:
        """The model that is recorded: the trained one, or a part of it."""
        return self.model if self._part is None else self._part

    def on_train_begin(self, logs=None):
        self._close()  # after a `fit` that failed
        warn_of_no_call(self._recorded)
        self._steps = StepLog(self._open, self._locate)
        record_steps(self.model, self._steps)

    def on_epoch_begin(self, epoch, logs=None):
        # Another callback may have compiled the model again.
        record_steps(self.model, self._steps)
        self._epoch_index = epoch
        self._updates_before = count_updates(self.model)
        if self._writer is not None:
            self._begin_epoch(self._epoch + 1)

    def on_train_batch_end(self, batch, logs=None):
        if self.save_freq == "epoch":
            return
        if self.model.train_function is not self._steps.function:
            # Another callback has created a new train function.
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
            check_no_updates(self.model, self._updates_before)
            return  # there was no batch
        is_selected = self.save_freq == "epoch" and self._is_selected(
            self._epoch, dict(logs or {})
        )
        self._write(logs, epoch_end=True, save_weights=is_selected)
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
                # a custom loop that does not signal epochs
                self.on_epoch_end(self._epoch_index, logs)
            self._note_last_state()
        finally:
            stop_recording(self._steps)
            self._close()
            self.set_model(None)

    def _note_last_state(self) -> None:
        """Records weights assigned as training ends, as averages are."""
        if self._writer is not None:
            self._writer.append(
                self._recorded,
                {"learning_rate": np.empty(0)},
                epoch=self._epoch,
                logs={},
                epoch_end=False,
                save_weights=False,
                updated=[],
                notes={"weighted": False, "added_losses": []},
                only_new=True,
            )

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()

    def _open(self, iterator) -> None:
        """Opens the run, right before the first batch.

        By then every callback that sets the model up has done so (for example
        BackupAndRestore), and the data show how to build an unbuilt model.
        """
        build(self.model, iterator)
        check_part(self.model, self._recorded)
        index, _ = worker_of(self.model.distribute_strategy)
        if index:
            self._writer = Onlooker()
            self._begin_epoch(self._epoch_index + 1)
            return
        replace = self.overwrite and not self._opened
        with self._explain_errors():
            place = (self.directory, self._recorded, self.params)
            if replace or not run_manifest.exists(self.directory):
                self._writer = RunWriter.create(*place)
            else:
                is_new = not (self._epoch_index or was_trained(self.model))
                self._writer = RunWriter.reopen(*place, is_new=is_new)
        self._opened = True
        self._marks = weight_marks(self._recorded)
        self._begin_epoch(max(self._epoch_index, self._writer.last_epoch) + 1)

    def _locate(self, positions: tuple[int, ...]) -> tuple[int, ...]:
        return locate(self.model, self._recorded, positions)

    def _warn_of_unknown_updates(self, steps: Steps) -> None:
        """Warns, once in a `fit`, of weights that changed but not by a step."""
        if not self._marks:
            return
        before, self._marks = self._marks, weight_marks(self._recorded)
        recorded = set().union(*steps.updated)
        paths = [
            self._recorded.weights[position].path
            for position, mark in self._marks.items()
            if mark != before.get(position) and position not in recorded
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
        """Writes the steps since the last write, and a snapshot if asked to."""
        steps = self._steps.take()
        self._warn_of_unknown_updates(steps)
        arrays = {"learning_rate": steps.learning_rates}
        if len(steps.updated) > 1:
            arrays["rates"] = steps.rates
        with self._explain_errors():
            path = self._writer.append(
                self._recorded,
                arrays,
                epoch=self._epoch,
                logs=scalar_metrics(logs or {}),
                epoch_end=epoch_end,
                save_weights=save_weights,
                updated=steps.updated,
                notes={
                    "weighted": steps.weighted,
                    "added_losses": layers_in(
                        self._recorded, steps.added_losses
                    ),
                    "beside": digests_beside(self._recorded),
                },
            )
        if path and self.verbose:
            step, shown = self._writer.last_step, files.display_path(path)
            print(f"\nEpoch {self._epoch}: saved step {step} to {shown}")

    @contextlib.contextmanager
    def _explain_errors(self) -> Iterator[None]:
        """For a `with` block, explains errors of writing the run."""
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"TracInCheckpoint could not write to {self.directory}, so "
                f"training stops: {error}. {self._recovery_advice()}",
            ) from error

    def _recovery_advice(self) -> str:
        if self._writer is None:
            return "Pass a directory that can be written to, with enough room."
        return (
            "Everything saved before is intact. Make room, then continue with "
            f"{self._writer.restoring} and model.fit."
        )
