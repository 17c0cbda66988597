"""Reading a training run: its checkpoints and the rates that led to each."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import operator
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import keras
import numpy as np

from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.checkpoint import Checkpoint
from keras_tracin.runs.reading import (
    Snapshot,
    check_epochs,
    check_rates,
    check_weight_files,
    mean_rates,
    read_history,
    read_notes,
    read_segments,
    read_weighted,
)
from keras_tracin.runs.saved import (
    SavedWeights,
    check_built,
    listed_weights,
    restore,
    saved_at,
)
from keras_tracin.storage import files


class TrainingRun(Sequence[Checkpoint]):
    """The checkpoints of one training, in order.

    A slice or `select` is a `TrainingRun` too. There, the interval of a
    checkpoint is everything since the previous one that was kept, so the sums
    of learning rates still add up.

    Example:
    ```python
    model.fit(x, y, epochs=10, callbacks=[TracInCheckpoint("runs/digits")])

    run = TrainingRun("runs/digits")
    run[-1].learning_rate  # mean rate of the last epoch
    every_second = run[1::2]
    ```

    Args:
        directory: The directory in which `TracInCheckpoint` recorded the run.

    Attributes:
        directory: That directory; None for a run made by `from_weights`.
        initial: The file with the weights before the first step, or None.
        learning_rates: float64 `[num_steps]`, the rate applied in each step;
            None for a run made by `from_weights`.
        history: Lists of metric values by name, one value per epoch that
            reported it, as in `keras.callbacks.History`. Slicing keeps all.
        epochs: The epochs of the values in `history`.
        weighted: Whether batches of the training had weights of their
            examples, by `sample_weight` or `class_weight`; None if unknown.
        added_losses: The layers that added losses from their inputs.
        beside: The variables that are not among the model's weights (a
            layer's plain `tf.Variable`, what the loss refers to): the place
            of each, and digests of the values that it had.

    Raises:
        ValueError: There is no run, a file of it is missing or damaged, or a
            recorded rate is NaN, infinite or negative.
    """

    def __init__(self, directory: str | os.PathLike):
        if (
            isinstance(directory, str | os.PathLike)
            and (place := Path(directory)).is_file()
        ):
            raise run_manifest.no_run(place)
        self.directory: Path | None = files.absolute_directory(directory)
        manifest = run_manifest.read(self.directory)
        self._segments = read_segments(self.directory, manifest)
        self._rates = np.concatenate(
            [np.empty(0), *(s.rates.max(axis=1) for s in self._segments)]
        )
        self.learning_rates: np.ndarray | None = self._rates
        self.initial: Path | None = self.directory / manifest["initial"]["file"]
        self.epochs, self.history = read_history(manifest)
        self.weighted: bool | None = read_weighted(manifest)
        self.added_losses: tuple[str, ...]
        self.beside: list[tuple[str, set[str]]]
        self.added_losses, self.beside = read_notes(manifest)
        self._states = run_manifest.states(manifest)
        self._listed = [
            (self.directory / entry["file"], entry["sha256"])
            for entry in run_manifest.listed_files(manifest)
        ]
        self._snapshots = [
            Snapshot(
                end=entry["step"],
                step=entry["step"],
                epoch=entry["epoch"],
                logs=entry["logs"],
                saved=listed_weights(self.directory, manifest, entry),
            )
            for entry in manifest["checkpoints"]
        ]

    @classmethod
    def from_weights(
        cls,
        files: Iterable[str | os.PathLike],
        learning_rates: float | Sequence[float] | np.ndarray,
        epochs: Iterable[int] | None = None,
    ) -> TrainingRun:
        """Adopts files that `keras.callbacks.ModelCheckpoint` wrote.

        Steps are unknown then: a checkpoint has a mean rate, but no `step`,
        `num_steps` and `learning_rate_sum`. Where a selection leaves files
        out, the rate of the next one kept is the mean over the epochs since
        the previous one kept.

        Example:
        ```python
        run = TrainingRun.from_weights(
            [f"weights-{epoch:02d}.weights.h5" for epoch in range(1, 11)],
            learning_rates=0.01,
        )
        ```

        Args:
            files: Paths of `.weights.h5` or `.keras` files, in the order of
                training.
            learning_rates: The mean rate of the training that led from each
                file's predecessor to it, or one number for all.
            epochs: The epoch of each file, counted from 1. By default 1 to
                the number of files.

        Raises:
            ValueError: A file is missing or of another kind, a rate is
                negative or not finite, or the lengths differ.
        """
        paths = check_weight_files(files)
        numbers = check_epochs(paths, epochs)
        rates = np.asarray(learning_rates, dtype=np.float64)
        if rates.ndim and rates.shape != (len(paths),):
            raise ValueError(
                f"Received learning_rates of shape {rates.shape}, expected "
                f"one number or one for each of the {len(paths)} files."
            )
        rates = np.broadcast_to(rates, [len(paths)])
        check_rates(rates, "learning_rates")

        run = cls.__new__(cls)
        run.directory = run.initial = run.learning_rates = None
        run._rates = np.repeat(rates, np.diff(numbers, prepend=0))
        run.epochs, run.history, run.weighted = [], {}, None
        run.added_losses, run.beside = (), []
        run._listed, run._segments, run._states = [], [], []
        run._snapshots = [
            Snapshot(epoch, None, epoch, logs={}, saved=saved_at(path))
            for epoch, path in zip(numbers, paths, strict=True)
        ]
        return run

    def __len__(self) -> int:
        return len(self._snapshots)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...

    @overload
    def __getitem__(self, index: slice) -> TrainingRun: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.select(range(len(self))[index])
        position = range(len(self))[operator.index(index)]
        previous = self._snapshots[position - 1].end if position else 0
        snapshot = self._snapshots[position]
        rates = self._rates[previous : snapshot.end]
        steps_known = snapshot.step is not None
        return Checkpoint(
            step=snapshot.step,
            epoch=snapshot.epoch,
            learning_rate=float(rates.mean()),
            learning_rate_sum=float(rates.sum()) if steps_known else None,
            num_steps=len(rates) if steps_known else None,
            logs=dict(snapshot.logs),
            path=snapshot.saved.path,
            sha256=snapshot.saved.sha256,
            weights=snapshot.saved.weights,
            exact=snapshot.saved.exact,
            exact_sha256=snapshot.saved.exact_sha256,
            digests=snapshot.saved.digests,
            updated=mean_rates(self._segments, previous, snapshot.end),
        )

    def select(self, indices: Iterable[int]) -> TrainingRun:
        """Keeps some checkpoints.

        Args:
            indices: Their positions in this run, increasing. Negative ones
                count from the end.

        Raises:
            IndexError: A position is outside the run.
            TypeError: A position is not an integer.
            ValueError: The positions do not increase.
        """
        received = list(indices)
        if any(isinstance(i, (bool, np.bool_)) for i in received):
            raise TypeError(
                f"Received booleans: {received}. Expected positions; "
                "np.flatnonzero(mask) turns a mask into positions."
            )
        every = range(len(self))
        try:
            kept = [every[operator.index(i)] for i in received]
        except IndexError:
            raise IndexError(
                f"Received indices {received}, but the run has {len(self)} "
                "checkpoints."
            ) from None
        if any(a >= b for a, b in itertools.pairwise(kept)):
            raise ValueError(
                f"Received indices {received}, expected increasing ones "
                "without repetition: checkpoints stay in the order of training."
            )
        selected = copy.copy(self)
        selected._snapshots = [self._snapshots[i] for i in kept]
        return selected

    def with_saved(self, saved: Sequence[SavedWeights]) -> TrainingRun:
        """The same run with other weights at its checkpoints.

        Args:
            saved: The files of each checkpoint.
        """
        other = copy.copy(self)
        other._snapshots = [
            dataclasses.replace(snapshot, saved=weights)
            for snapshot, weights in zip(self._snapshots, saved, strict=True)
        ]
        return other

    def leading_to(self, model: keras.Model) -> TrainingRun:
        """Keeps the checkpoints that led to a model's present weights.

        These are all of them, unless training has gone back: after
        `EarlyStopping(restore_best_weights=True)`, the epochs since the best
        one are part of the training, but not of what led to the model.

        Args:
            model: The model that was trained.

        Raises:
            ValueError: Its weights are those of no state that was recorded:
                neither the initial ones, nor those at the end of an epoch.
        """
        check_built(model)
        digest = run_manifest.weights_digest(model)
        ends = [end for end, known in self._states if known == digest]
        if not ends:
            raise ValueError(
                f"The model {model.name!r} is in no state that {self!r} has "
                "recorded. Expected its weights at the end of an epoch; pass "
                "the run as it is, or choose checkpoints by `select`."
            )
        kept = [i for i, s in enumerate(self._snapshots) if s.end <= ends[-1]]
        return self.select(kept)

    def restore(self, model: keras.Model) -> None:
        """Puts a model into the last saved state, to continue training.

        That is the last checkpoint, or the initial weights where there is
        none. See `Checkpoint.restore`.

        Args:
            model: The model that was trained, or one built and compiled by
                the same code.

        Raises:
            ValueError: As `Checkpoint.restore`.
        """
        if self._snapshots:
            saved = self._snapshots[-1].saved
        elif self.initial is not None:
            saved = saved_at(self.initial)
        else:
            raise ValueError("The selection has no checkpoint to restore.")
        restore(model, saved)

    def verify(self) -> None:
        """Reads every file of the run and compares it with its checksum.

        Files adopted by `from_weights` have none: they only have to be there.

        Raises:
            ValueError: A file, which is named, is missing or damaged.
        """
        for path, sha256 in self._listed:
            files.check_digest(path, sha256, run_manifest.REMEDY)
        if self.directory is None:
            check_weight_files(
                snapshot.saved.path for snapshot in self._snapshots
            )

    def __repr__(self) -> str:
        source = (
            "adopted files"
            if self.directory is None
            else files.display_path(self.directory)
        )
        if not self._snapshots:
            return f"<TrainingRun of {source}: no checkpoints>"
        first, last = self._snapshots[0], self._snapshots[-1]
        steps = (
            "" if first.step is None else f"steps {first.step}-{last.step}, "
        )
        return (
            f"<TrainingRun of {source}: {len(self)} checkpoints, {steps}"
            f"epochs {first.epoch}-{last.epoch}>"
        )
