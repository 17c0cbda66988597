"""The rows of a watched training, epoch by epoch, in memory or on disk.

On disk it is a run directory as `TracInCheckpoint` writes it, with more arrays
beside the learning rates of each epoch, and the weights at the end of every
epoch. A training that was killed goes on from the last of them.

Synopsis:

    recording = Recording.open(directory, model, settings, resume=True)
    recording.done                      # epochs that need not be trained
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
    """Segments of arrays, one for each epoch.

    Attributes:
        done: how many epochs were recorded when it was opened.
        num_steps: how many steps are recorded.
    """

    def __init__(self, model: keras.Model, settings: Mapping[str, Any]):
        self.done = self.num_steps = 0
        settings = {**settings, "objective": describe_loss(model)}
        self._model, self._settings = model, json.dumps(settings)
        self._writer: RunWriter | None = None
        self._directory: Path | None = None
        self._kept: list[dict[str, np.ndarray]] = []

    @classmethod
    def open(
        cls,
        directory: Path | None,
        model: keras.Model,
        settings: Mapping[str, Any],
        resume: bool,
    ) -> Recording:
        """Begins a recording, or goes on with the one in the directory.

        Where it goes on, the model has the weights and its optimizer the state
        that were recorded last.

        Args:
            directory: where to write; None keeps all in memory.
            model: a built and compiled model.
            settings: what must be the same to go on, as JSON takes it.
            resume: whether to go on with what is there, or replace it.

        Raises:
            ValueError: if the directory holds something else than a recording
                with these settings.
        """
        recording = cls(model, settings)
        if directory is None:
            return recording
        directory = files.absolute_directory(directory)
        recording._directory = directory
        # So that its state is in the files, from the first of them on.
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
        """Records what there is of an epoch since the last call.

        Args:
            arrays: `learning_rate [t]` and others.
            epoch: its number, counted from 1.
            logs: at its end, the metrics; None in the midst of it.
            save_weights: whether to keep the model's weights, too.
        """
        self.num_steps += len(arrays["learning_rate"])
        if self._writer is None:
            self._kept.append(dict(arrays))
            return
        self._writer.append(
            self._model,
            {
                **arrays,
                **_states(self._model),
                _SETTINGS: np.array(self._settings),
            },
            epoch=epoch,
            logs=logs or {},
            epoch_end=logs is not None,
            save_weights=save_weights,
        )

    def segments(self) -> list[dict[str, np.ndarray]]:
        """The arrays of all epochs, those recorded earlier as well."""
        if self._directory is None:
            return self._kept
        kind = json.loads(self._settings)["kind"]
        return read_segments(self._directory, kind)

    def _resume(self) -> None:
        assert self._directory is not None
        manifest = run_manifest.read(self._directory)
        segments, checkpoints = manifest["segments"], manifest["checkpoints"]
        if not segments:
            return  # It was killed in the first epoch.
        first = run_manifest.read_arrays(self._directory, segments[0])
        if _SETTINGS not in first:
            raise ValueError(_not_a_recording(self._directory))
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
        ended = [segment for segment in segments if segment["epoch_end"]]
        if not ended:
            return
        last = ended[-1]["last_step"]
        (entry,) = (each for each in checkpoints if each["step"] == last)
        restore(self._model, listed_weights(self._directory, manifest, entry))
        # What it has of a later epoch is dropped, with a warning.
        self._writer = RunWriter.reopen(self._directory, self._model)
        _set_states(
            self._model, run_manifest.read_arrays(self._directory, ended[-1])
        )
        self.done, self.num_steps = self._writer.last_epoch, last

    def _check_settings(self, recorded: Mapping[str, Any]) -> None:
        given = json.loads(self._settings)
        differ = {
            name: (given.get(name), recorded.get(name))
            # The kind first. Earlier versions recorded fewer of them.
            for name in {**given, **recorded}
            if name in recorded and given.get(name) != recorded[name]
        }
        if differ:
            name, (received, expected) = next(iter(differ.items()))
            raise ValueError(
                f"{self._directory} holds a trace that was made otherwise: "
                f"received {name} {received!r}, expected {expected!r}. Pass "
                "the same to go on with it, resume=False to replace it, or "
                "another directory."
            )


def read_segments(directory: Path, kind: str) -> list[dict[str, np.ndarray]]:
    """The arrays of all epochs that a directory's recording has.

    Args:
        directory: where it is.
        kind: what it should be of, as its settings say.

    Raises:
        ValueError: if there is no such recording, or a file is damaged.
    """
    manifest = run_manifest.read(directory)
    found = [
        run_manifest.read_arrays(directory, entry)
        for entry in manifest["segments"]
    ]
    if not found or _SETTINGS not in found[0]:
        raise ValueError(_not_a_recording(directory))
    recorded = json.loads(str(found[0][_SETTINGS]))["kind"]
    if recorded != kind:
        raise ValueError(
            f"{directory} holds a recording of another kind: received "
            f"{recorded!r}, expected {kind!r}. Choose another directory."
        )
    return found


def recorded_history(directory: Path) -> keras.callbacks.History:
    """The metrics of all epochs, in the form that `model.fit` returns."""
    run = TrainingRun(directory)
    history = keras.callbacks.History()
    history.history = dict(run.history)
    history.epoch = [epoch - 1 for epoch in run.epochs]
    return history


def _states(model: keras.Model) -> dict[str, np.ndarray]:
    """The states of random numbers, which a weights file leaves out."""
    return {f"seed_{at}": one for at, one in enumerate(seed_states(model))}


def _set_states(model: keras.Model, arrays: Mapping[str, np.ndarray]) -> None:
    for at, variable in enumerate(seed_variables(model)):
        if f"seed_{at}" in arrays:
            variable.assign(arrays[f"seed_{at}"])


def _not_a_recording(directory: Path) -> str:
    return (
        f"{directory} holds a training run that was not traced, or no epoch of "
        "one. Expected the directory of a trace; choose another one, or pass "
        "resume=False to replace what is there."
    )
