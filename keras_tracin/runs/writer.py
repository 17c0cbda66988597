"""Writing a run directory, whole after each write. Used by the callback."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs import run_files
from keras_tracin.runs.earlier import keep_earlier
from keras_tracin.runs.lock import RunLock
from keras_tracin.runs.seeds import seed_states
from keras_tracin.storage import files


class RunWriter:
    """Appends steps and checkpoints to the run in a directory.

    Make one with `RunWriter.create` or `RunWriter.reopen`. It keeps no
    reference to the model.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any], fit: Any):
        self.directory = directory
        self._manifest = manifest
        self._text = ""  # of the manifest, as it was written last
        self._lock = RunLock(directory, fit)

    @classmethod
    def create(
        cls, directory: Path, model: keras.Model, fit: Any = None
    ) -> RunWriter:
        """Begins a run with the model's present weights as step 0.

        A run that is already there is lost.

        Args:
            directory: The directory to write to.
            model: A built model.
            fit: See `RunLock`.

        Raises:
            ValueError: Another training records into the directory.
        """
        writer = cls(directory, {"checkpoints": [], "segments": []}, fit)
        with _released_on_error(writer):
            writer._begin(model)
        return writer

    def _begin(self, model: keras.Model) -> None:
        # The old manifest goes first: without it, its files are just files.
        (self.directory / run_manifest.FILE_NAME).unlink(missing_ok=True)
        run_files.remove_unlisted(self.directory, self._manifest)
        self._write_manifest(
            {
                "format_version": run_manifest.FORMAT_VERSION,
                "model": run_manifest.architecture(model),
                "initial": {
                    **run_files.save_weights(
                        self.directory,
                        model,
                        0,
                        run_manifest.weights_digest(model),
                    ),
                    "step": 0,
                    "seeds": [state.tolist() for state in seed_states(model)],
                },
                "checkpoints": [],
                "segments": [],
            }
        )

    @classmethod
    def reopen(
        cls,
        directory: Path,
        model: keras.Model,
        fit: Any = None,
        is_new: bool = False,
        keep_later: bool = True,
    ) -> RunWriter:
        """Continues the run that the model's present weights belong to.

        Where they are those of an earlier recorded state, the run goes on from
        there. Where they are its initial ones, or those of a new training, a
        new run begins. What the directory held before is kept as a run of its
        own then, within it, with a warning.

        Args:
            directory: The directory to write to.
            model: A built model.
            fit: See `RunLock`.
            is_new: Whether the model is not trained yet, so that weights
                that the run does not know are those of a new training.
            keep_later: Whether to keep what came after an earlier state, or
                to drop it: where the same steps are made again.

        Raises:
            ValueError: The run is of another architecture or is not in any
                recorded state the model is in, and training is not new; or
                the run is damaged; or another training records into it.
        """
        writer = cls(directory, {}, fit)
        with _released_on_error(writer):
            writer._continue(model, is_new, keep_later)
        return writer

    def _continue(
        self, model: keras.Model, is_new: bool, keep_later: bool
    ) -> None:
        directory = self.directory
        self._manifest = run_manifest.read(directory)
        num_segments = len(self._manifest["segments"])
        mismatch = run_manifest.first_mismatch(
            self._manifest["model"]["weights"], model
        )
        kept = None
        if not mismatch:
            digest = run_manifest.weights_digest(model)
            states = run_manifest.states(self._manifest)
            known = [
                i for i, (_, other) in enumerate(states) if other == digest
            ]
            kept = known[-1] if known else None
        if kept is None and not is_new:
            raise ValueError(
                _not_this_model(directory, mismatch)
                if mismatch
                else _not_this_state(self)
            )
        if kept is None or kept == 0 < num_segments:
            if num_segments:
                _keep_for_new_run(self)
            self._manifest = {"checkpoints": [], "segments": []}
            self._begin(model)
            return
        if kept < num_segments:
            self._go_back(kept, keep_later)
        run_files.remove_unlisted(self.directory, self._manifest)
        # Found out now, not at the first snapshot: that nothing can be written.
        self._write_manifest(self._manifest)

    def close(self) -> None:
        """Lets another training write to the directory."""
        self._lock.release()

    @property
    def last_step(self) -> int:
        """Number of steps that the run has recorded."""
        segments = self._manifest["segments"]
        return segments[-1]["last_step"] if segments else 0

    @property
    def last_epoch(self) -> int:
        """The last epoch that ended, 0 if none did."""
        segments = self._manifest["segments"]
        return max((s["epoch"] for s in segments if s["epoch_end"]), default=0)

    @property
    def last_saved_step(self) -> int:
        """The step of the last snapshot, the initial weights' (0) included."""
        checkpoints = self._manifest["checkpoints"]
        return checkpoints[-1]["step"] if checkpoints else 0

    @property
    def restoring(self) -> str:
        """The call that puts a model into the last saved state."""
        directory = str(self.directory)
        return f"keras_tracin.TrainingRun({directory!r}).restore(model)"

    def append(
        self,
        model: keras.Model,
        arrays: Mapping[str, np.ndarray],
        *,
        epoch: int,
        logs: Mapping[str, float],
        epoch_end: bool,
        save_weights: bool,
        updated: Sequence[Sequence[int]] | None = None,
        notes: Mapping[str, Any] | None = None,
        only_new: bool = False,
    ) -> Path | None:
        """Records the steps since the last call.

        Args:
            model: The model after these steps.
            arrays: `learning_rate` `[num_steps]`, and any other arrays with
                one row per step.
            epoch: The epoch of the run that they belong to.
            logs: The metrics by now.
            epoch_end: Whether the epoch is over.
            save_weights: Whether to make a checkpoint of the model. A step
                that has one already (no update since) gets no second one.
            updated: The sets of variables that the steps updated, as positions
                in `model.weights`; None if that is unknown. For more than one
                set, `arrays` has `rates` `[num_steps, sets]`.
            notes: Anything else that is known of the steps, as JSON; see the
                manifest.
            only_new: Whether to record nothing where the weights are those
                of a recorded state.

        Returns:
            The file with the weights, or None if none was written.

        Raises:
            OSError: The files cannot be written.
            ValueError: Another training has written to the run.
        """
        digest = run_manifest.weights_digest(model)
        known = (state for _, state in run_manifest.states(self._manifest))
        if only_new and digest in known:
            return None
        self._check_is_alone()
        num_steps = len(arrays["learning_rate"])
        step = self.last_step + num_steps
        segments, checkpoints = (
            list(self._manifest[name]) for name in ("segments", "checkpoints")
        )
        segment = {
            "first_step": self.last_step + 1,
            "last_step": step,
            "epoch": epoch,
            "epoch_end": epoch_end,
            "logs": dict(logs) if epoch_end else None,
            **run_files.save_steps(self.directory, arrays, len(segments)),
            "weights_digest": digest,
        }
        sets = [list(p) for p in self._manifest.get("updated", [])]
        if updated is not None:
            new = [list(p) for p in updated if list(p) not in sets]
            sets += new
            segment["updated"] = [sets.index(list(p)) for p in updated]
        segment |= notes or {}
        path = None
        if save_weights and step > self.last_saved_step:
            saved = run_files.save_weights(
                self.directory, model, step, segment["weights_digest"]
            )
            path = self.directory / saved["file"]
            checkpoints.append(
                {"step": step, "epoch": epoch, "logs": dict(logs), **saved}
            )
        self._commit([*segments, segment], checkpoints, sets)
        return path

    def _commit(
        self,
        segments: list[dict],
        checkpoints: list[dict],
        updated: list[list[int]],
    ) -> None:
        """Makes these the run's content, on the disk and then here."""
        manifest = {
            **self._manifest,
            "format_version": run_manifest.FORMAT_VERSION,
            "updated": updated,
            "checkpoints": checkpoints,
            "segments": segments,
        }
        self._write_manifest(manifest)

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        self._text = run_manifest.write(self.directory, manifest)
        self._manifest = manifest

    def _check_is_alone(self) -> None:
        """Raises ValueError if something else has written to the run."""
        self._lock.ensure()
        path = self.directory / run_manifest.FILE_NAME
        if not path.is_file() or path.read_text("utf-8") != self._text:
            raise ValueError(
                f"{path} is not as this training left it: another one has "
                "recorded into the directory meanwhile, or the file was "
                "deleted or edited. What the directory holds now is kept, and "
                "this training cannot be recorded into it any more. Train "
                "again with a directory of its own."
            )

    def _go_back(self, num_segments: int, keep_later: bool) -> None:
        """Goes back to the state after some of the segments."""
        last_step, last_epoch = self.last_step, self.last_epoch
        fate = "It was dropped"
        if keep_later:
            earlier = files.display_path(keep_earlier(self.directory))
            fate = f"The run with it is kept in {earlier}"
        segments = self._manifest["segments"][:num_segments]
        step = segments[-1]["last_step"]
        self._commit(
            segments,
            [c for c in self._manifest["checkpoints"] if c["step"] <= step],
            self._manifest.get("updated", []),
        )
        warnings.warn(
            f"The model is at step {step} (epoch {self.last_epoch}) of the run "
            f"in {self.directory}, which goes on from there. What came after, "
            f"up to step {last_step} (epoch {last_epoch}), did not lead to "
            f"these weights. {fate}.",
            stacklevel=2,
        )


def _keep_for_new_run(writer: RunWriter) -> None:
    earlier = keep_earlier(writer.directory)
    warnings.warn(
        f"This training is a new one, not that in {writer.directory}, which "
        f"has {writer.last_step} steps. The former run is kept in "
        f"{files.display_path(earlier)}; overwrite=True would replace it.",
        stacklevel=2,
    )


def _not_this_model(directory: Path, mismatch: str) -> str:
    return (
        f"{directory} holds the run of a different model: {mismatch}. Pass "
        "overwrite=True to replace it, or choose another directory."
    )


def _not_this_state(writer: RunWriter) -> str:
    return (
        f"{writer.directory} holds a run whose last state is step "
        f"{writer.last_step} (epoch {writer.last_epoch} is its last full "
        "one), which is not the state of this model, and the model was "
        "trained already. Pass overwrite=True to replace the run; or choose "
        "another directory; or continue the run after compiling the model "
        f"and calling {writer.restoring}. If BackupAndRestore has put the "
        "weights of a later step into the model, the learning rates up to it "
        "are lost: delete its backup directory, restore the model as above, "
        "and list TracInCheckpoint before BackupAndRestore, so that the run "
        "is never behind. It and model.load_weights cannot bring back a model "
        "with LoRA, which Keras merges as it saves."
    )


@contextlib.contextmanager
def _released_on_error(writer: RunWriter) -> Iterator[None]:
    # A traceback would keep the writer, and the lock with it.
    try:
        yield
    except BaseException:
        writer.close()
        raise
