"""Records of an observed training, epoch by epoch, in memory or on disk.

On disk, a recording is a run directory as `TracInCheckpoint` writes it, with
more arrays beside the learning rates of each epoch, and with the weights at the
end of every epoch. An interrupted training continues from the last of them.

Synopsis:

    recording = Recording.open(directory, model, settings, resume=True)
    recording.num_epochs                # number of epochs recorded before
    recording.append(arrays, epoch, logs)
    recording.segments()
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.models.descriptions import describe_loss
from keras_tracin.runs import RunWriter, TrainingRun
from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.saved import listed_weights, restore
from keras_tracin.runs.seeds import seed_states, seed_variables
from keras_tracin.storage import files

_SETTINGS = "settings"


class Recording:
    """Arrays recorded during training, in segments of at most an epoch.

    Attributes:
        num_epochs: number of epochs that were recorded before it was opened.
        num_steps: number of steps recorded so far.
    """

    def __init__(self, model: keras.Model, settings: Mapping[str, Any]):
        self.num_epochs = self.num_steps = 0
        settings = {**settings, "objective": describe_loss(model)}
        self._model, self._settings = model, json.dumps(settings)
        self._writer: RunWriter | None = None
        self._directory: Path | None = None
        self._memory: list[dict[str, np.ndarray]] = []

    @classmethod
    def open(
        cls,
        directory: Path | None,
        model: keras.Model,
        settings: Mapping[str, Any],
        resume: bool,
    ) -> Recording:
        """Begins a recording, or continues the one in the directory.

        To continue, the last recorded state is put into the model and its
        optimizer.

        Args:
            directory: directory to write to; None keeps everything in memory.
            model: a built and compiled model.
            settings: JSON-compatible settings that must be equal to continue.
            resume: If true, a recording in the directory is continued; if
                false, it is replaced.

        Raises:
            ValueError: if the directory holds anything but a recording with
                these settings.
        """
        recording = cls(model, settings)
        if directory is None:
            return recording
        directory = files.absolute_directory(directory)
        recording._directory = directory
        # So that the first file already has the state of the optimizer.
        model.optimizer.build(model.trainable_variables)
        if resume and run_manifest.exists(directory):
            recording._resume()
        if recording._writer is None:
            recording._writer = RunWriter.create(directory, model)
        return recording

    def append(
        self,
        arrays: Mapping[str, np.ndarray],
        epoch: int,
        logs: Mapping[str, float] | None,
        save_weights: bool = True,
    ) -> None:
        """Records the steps since the last call.

        Args:
            arrays: `learning_rate [t]` and others.
            epoch: number of the epoch, counted from 1.
            logs: metrics at the end of the epoch; None before its end.
            save_weights: If true, the weights of the model are saved as well.
        """
        self.num_steps += len(arrays["learning_rate"])
        if self._writer is None:
            self._memory.append(dict(arrays))
            return
        self._writer.append(
            self._model,
            {
                **arrays,
                **_seed_arrays(self._model),
                _SETTINGS: np.array(self._settings),
            },
            epoch=epoch,
            logs=logs or {},
            epoch_end=logs is not None,
            save_weights=save_weights,
        )

    def segments(self) -> list[dict[str, np.ndarray]]:
        """The arrays of all epochs, including those recorded before."""
        if self._directory is None:
            return self._memory
        kind = json.loads(self._settings)["kind"]
        return read_segments(self._directory, kind)

    def _resume(self) -> None:
        assert self._directory is not None
        manifest = run_manifest.read(self._directory)
        segments, checkpoints = manifest["segments"], manifest["checkpoints"]
        if not segments:
            return  # interrupted in the first epoch
        first = run_manifest.read_arrays(self._directory, segments[0])
        if _SETTINGS not in first:
            raise ValueError(_message_not_recorded(self._directory))
        self._check_settings(json.loads(str(first[_SETTINGS])))
        mismatch = run_manifest.first_mismatch(
            manifest["model"]["weights"], self._model
        )
        if mismatch:
            raise ValueError(
                f"{self._directory} holds the trace of another model: "
                f"{mismatch}. Pass resume=False to replace it, or choose "
                "another directory."
            )
        epoch_ends = [segment for segment in segments if segment["epoch_end"]]
        if not epoch_ends:
            return
        last = epoch_ends[-1]["last_step"]
        (entry,) = (c for c in checkpoints if c["step"] == last)
        restore(self._model, listed_weights(self._directory, manifest, entry))
        # Drops, with a warning, what was recorded of a later epoch.
        self._writer = RunWriter.reopen(
            self._directory, self._model, keep_later=False
        )
        _restore_seeds(
            self._model,
            run_manifest.read_arrays(self._directory, epoch_ends[-1]),
        )
        self.num_epochs, self.num_steps = self._writer.last_epoch, last

    def _check_settings(self, recorded: Mapping[str, Any]) -> None:
        received_settings = json.loads(self._settings)
        differences = {
            name: (received_settings.get(name), recorded.get(name))
            # The kind comes first. Earlier versions recorded fewer settings.
            for name in {**received_settings, **recorded}
            if name in recorded
            and received_settings.get(name) != recorded[name]
        }
        if differences:
            name, (received, expected) = next(iter(differences.items()))
            raise ValueError(
                f"{self._directory} holds a trace with other settings: "
                f"received {name} {received!r}, expected {expected!r}. Pass "
                "the same to continue it, resume=False to replace it, or "
                "another directory."
            )


def read_segments(directory: Path, kind: str) -> list[dict[str, np.ndarray]]:
    """Reads the arrays of all epochs of a recording.

    Args:
        directory: directory of the recording.
        kind: expected kind, as in the settings of the recording.

    Raises:
        ValueError: if there is no such recording, or a file is damaged.
    """
    manifest = run_manifest.read(directory)
    segments = [
        run_manifest.read_arrays(directory, entry)
        for entry in manifest["segments"]
    ]
    if not segments or _SETTINGS not in segments[0]:
        raise ValueError(_message_not_recorded(directory))
    recorded = json.loads(str(segments[0][_SETTINGS]))["kind"]
    if recorded != kind:
        raise ValueError(
            f"{directory} holds a recording of another kind: received "
            f"{recorded!r}, expected {kind!r}. Choose another directory."
        )
    return segments


def recorded_history(directory: Path) -> keras.callbacks.History:
    """The metrics of all epochs, in the form that `model.fit` returns."""
    run = TrainingRun(directory)
    history = keras.callbacks.History()
    history.history = dict(run.history)
    history.epoch = [epoch - 1 for epoch in run.epochs]
    return history


def _seed_arrays(model: keras.Model) -> dict[str, np.ndarray]:
    """The seed states, which are not in files of weights."""
    return {f"seed_{i}": state for i, state in enumerate(seed_states(model))}


def _restore_seeds(
    model: keras.Model, arrays: Mapping[str, np.ndarray]
) -> None:
    for i, variable in enumerate(seed_variables(model)):
        if f"seed_{i}" in arrays:
            variable.assign(arrays[f"seed_{i}"])


def _message_not_recorded(directory: Path) -> str:
    return (
        f"{directory} holds a training run that was not traced, or no epoch of "
        "one. Expected the directory of a trace; choose another one, or pass "
        "resume=False to replace what is there."
    )
