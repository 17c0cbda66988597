"""Reading a training run: its checkpoints and the rates that led to each."""

from __future__ import annotations

import copy
import itertools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import keras
import numpy as np

from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.saved import SavedWeights, listed, restore, saved_at
from keras_tracin.storage import files


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model at one moment of its training.

    Its *interval* is the training since the previous checkpoint of the same
    `TrainingRun`, or since the beginning.

    Attributes:
        step: How many optimizer updates led to it, counted from the beginning
            of the run. None if unknown (`TrainingRun.from_weights`).
        epoch: The epoch in which it was taken, counted from 1.
        learning_rate: Mean of the rates applied in its interval: η_k. Of a
            step that updated several sets of variables at several rates, the
            largest counts.
        learning_rate_sum: Their sum, or None if unknown.
        num_steps: Updates in its interval, or None if unknown.
        logs: The metrics at that moment.
        path: The Keras weights file.
        sha256: The digest of that file, if it was recorded.
        weights: `(path, shape, dtype)` of each of the model's weights, if
            that was recorded.
        exact: The file with the weights that Keras's does not hold as they
            were (LoRA, which it merges), None where it holds all.
        exact_sha256: The digest of that file, if it was recorded.
        digests: What identifies the model's weights at that moment, if it was
            recorded.
        updated: The variables that steps of its interval updated, by their
            positions in `model.weights`, and the mean rate of each: over all
            steps of the interval, 0 in those that did not update it, as where
            it was frozen. None if unknown (`TrainingRun.from_weights`, and
            runs that were recorded before this was).
    """

    step: int | None
    epoch: int
    learning_rate: float
    learning_rate_sum: float | None
    num_steps: int | None
    logs: Mapping[str, float] = field(hash=False)
    path: Path
    sha256: str | None = field(default=None, repr=False)
    weights: tuple = field(default=(), repr=False, hash=False)
    exact: Path | None = field(default=None, repr=False)
    exact_sha256: str | None = field(default=None, repr=False)
    digests: tuple[str, ...] = field(default=(), repr=False)
    updated: Mapping[int, float] | None = field(
        default=None, repr=False, hash=False
    )

    @property
    def saved(self) -> SavedWeights:
        """The files, and what is known of the weights in them."""
        return SavedWeights(
            path=self.path,
            sha256=self.sha256,
            exact=self.exact,
            exact_sha256=self.exact_sha256,
            digests=self.digests,
            weights=self.weights,
        )

    def restore(self, model: keras.Model) -> None:
        """Puts a model into this state, to continue training from here.

        Unlike `model.load_weights(path)`, this brings back every weight as it
        was, also those that Keras merges or leaves out as it saves, and the
        optimizer's state into a model that was only just compiled.

        Args:
            model: The model that was trained, or one built and compiled by
                the same code.

        Raises:
            ValueError: The model is not built or is another one; or a file is
                missing, damaged or does not hold the weights that training
                had. The model is as it was then.
        """
        restore(model, self.saved)


@dataclass(frozen=True)
class _Snapshot:
    """Saved weights and how many entries of `_rates` led to them."""

    end: int
    step: int | None
    epoch: int
    logs: Mapping[str, float]
    saved: SavedWeights


@dataclass(frozen=True)
class _Segment:
    """Steps in a row, and what they updated.

    Attributes:
        start: The number of steps before it.
        rates: float64 `[n, k]`, those of each set of variables.
        updated: `k` sets of positions; None if unknown.
    """

    start: int
    rates: np.ndarray
    updated: tuple[frozenset[int], ...] | None


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
        directory: Where `TracInCheckpoint` recorded the run.

    Attributes:
        directory: That directory; None for a run made by `from_weights`.
        initial: The file with the weights before the first step, or None.
        learning_rates: float64 `[num_steps]`, the rate applied in each step;
            None for a run made by `from_weights`.
        history: Lists of metric values by name, one value per epoch that
            reported it, as in `keras.callbacks.History`. Slicing keeps all.
        epochs: The epochs that `history` tells of.
        weighted: Whether batches of the training had weights of their
            examples, by `sample_weight` or `class_weight`; None if unknown.
        added_losses: The layers that added losses from their inputs.
        beside: The variables that are not among the model's weights (a
            layer's plain `tf.Variable`, what the loss refers to): where each
            is, and what identifies the values that it had.

    Raises:
        ValueError: There is no run, a file of it is missing or damaged, or a
            recorded rate is NaN, infinite or negative.
    """

    def __init__(self, directory: str | os.PathLike):
        self.directory: Path | None = files.absolute_directory(directory)
        manifest = run_manifest.read(self.directory)
        self._segments = _read_segments(self.directory, manifest)
        self._rates = np.concatenate(
            [np.empty(0), *(s.rates.max(axis=1) for s in self._segments)]
        )
        self.learning_rates: np.ndarray | None = self._rates
        self.initial: Path | None = self.directory / manifest["initial"]["file"]
        self.epochs, self.history = _history(manifest)
        self.weighted: bool | None = _weighted(manifest)
        self.added_losses: tuple[str, ...]
        self.beside: list[tuple[str, set[str]]]
        self.added_losses, self.beside = _notes(manifest)
        self._listed = [
            (self.directory / entry["file"], entry["sha256"])
            for entry in run_manifest.listed_files(manifest)
        ]
        self._snapshots = [
            _Snapshot(
                end=entry["step"],
                step=entry["step"],
                epoch=entry["epoch"],
                logs=entry["logs"],
                saved=listed(self.directory, manifest, entry),
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
        paths = _weight_files(files)
        numbers = _epochs_of(paths, epochs)
        rates = np.asarray(learning_rates, dtype=np.float64)
        if rates.ndim and rates.shape != (len(paths),):
            raise ValueError(
                f"Received learning_rates of shape {rates.shape}, expected "
                f"one number or one for each of the {len(paths)} files."
            )
        rates = np.broadcast_to(rates, [len(paths)])
        _check_rates(rates, "learning_rates")

        run = cls.__new__(cls)
        run.directory = run.initial = run.learning_rates = None
        run._rates = np.repeat(rates, np.diff(numbers, prepend=0))
        run.epochs, run.history, run.weighted = [], {}, None
        run.added_losses, run.beside = (), []
        run._listed, run._segments = [], []
        run._snapshots = [
            _Snapshot(epoch, None, epoch, logs={}, saved=saved_at(path))
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
            updated=self._updated(previous, snapshot.end),
        )

    def _updated(self, start: int, stop: int) -> dict[int, float] | None:
        """The mean rate of each variable that these steps updated."""
        segments = [
            segment
            for segment in self._segments
            if start <= segment.start < stop and len(segment.rates)
        ]
        columns: dict[tuple, list[int]] = {}  # alike in all segments
        positions: set[int] = set()
        for segment in segments:
            if segment.updated is None:
                return None
            positions.update(*segment.updated)
        for position in sorted(positions):
            sets = tuple(
                tuple(
                    at
                    for at, members in enumerate(segment.updated or ())
                    if position in members
                )
                for segment in segments
            )
            columns.setdefault(sets, []).append(position)
        means: dict[int, float] = {}
        for sets, alike in columns.items():
            rates = [
                segment.rates[:, at].sum(axis=1)
                for segment, at in zip(segments, map(list, sets), strict=True)
            ]
            means |= dict.fromkeys(alike, float(np.concatenate(rates).mean()))
        return means if segments else None

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
            _weight_files(snapshot.saved.path for snapshot in self._snapshots)

    def __repr__(self) -> str:
        source = (
            "adopted files"
            if self.directory is None
            else files.shown(self.directory)
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


def _read_segments(directory: Path, manifest: dict) -> list[_Segment]:
    """The rates of all segments, in order. Checks each segment's file."""
    segments = []
    for entry in manifest["segments"]:
        path = directory / entry["file"]
        arrays = run_manifest.read_arrays(directory, entry)
        rates = arrays.get("learning_rate")
        num_steps = entry["last_step"] - entry["first_step"] + 1
        if rates is None or rates.shape != (num_steps,):
            received = "none" if rates is None else f"shape {rates.shape}"
            raise ValueError(
                f"{path} has no learning rates for steps {entry['first_step']} "
                f"to {entry['last_step']}: received {received}, expected an "
                f"array `learning_rate` of shape ({num_steps},). Record the "
                "run with TracInCheckpoint."
            )
        updated = entry.get("updated")
        if updated is not None:
            sets = manifest["updated"]
            updated = tuple(frozenset(sets[at]) for at in updated)
        rates = rates[:, np.newaxis]
        if updated is not None and len(updated) > 1:
            rates = arrays["rates"]
        _check_rates(rates, str(path), first_step=entry["first_step"])
        segments.append(_Segment(entry["first_step"] - 1, rates, updated))
    return segments


def _check_rates(
    rates: np.ndarray, where: str, first_step: int | None = None
) -> None:
    """Raises ValueError at the first rate that cannot be one."""
    wrong = ~(np.isfinite(rates) & (rates >= 0))
    bad = np.flatnonzero(wrong.any(axis=1) if wrong.ndim > 1 else wrong)
    if bad.size:
        place = (
            f"position {bad[0]}"
            if first_step is None
            else f"step {first_step + bad[0]}"
        )
        raise ValueError(
            f"{where}: received a learning rate of "
            f"{np.squeeze(rates[bad[0]])} at {place}, expected one that is "
            "finite and not negative."
        )


def _history(manifest: dict) -> tuple[list[int], dict[str, list[float]]]:
    """The epochs that ended, and their metrics by name."""
    ended = [s for s in manifest["segments"] if s["epoch_end"]]
    history: dict[str, list[float]] = {}
    for segment in ended:
        for name, value in segment["logs"].items():
            history.setdefault(name, []).append(value)
    return [segment["epoch"] for segment in ended], history


def _notes(
    manifest: dict,
) -> tuple[tuple[str, ...], list[tuple[str, set[str]]]]:
    """Layers that added losses; digests of variables beside the weights."""
    added: dict[str, None] = {}
    beside: list[tuple[str, set[str]]] = []
    for segment in manifest["segments"]:
        added.update(dict.fromkeys(segment.get("added_losses", ())))
        noted = segment.get("beside", ())
        beside += [(where, set()) for where, _ in noted[len(beside) :]]
        for (_, digests), (_, digest) in zip(beside, noted, strict=False):
            digests.add(digest)
    return tuple(added), beside


def _weighted(manifest: dict) -> bool | None:
    known = [segment.get("weighted") for segment in manifest["segments"]]
    if any(known):
        return True
    return None if None in known else False


def _weight_files(files: Iterable[str | os.PathLike]) -> list[Path]:
    """The files as paths, each of which is there and of a known kind."""
    if isinstance(files, (str, os.PathLike)):
        raise TypeError(
            f"Received one path, {os.fspath(files)!r}, expected a list of "
            "them, in the order of training."
        )
    paths = [Path(os.path.abspath(file)) for file in files]
    if not paths:
        raise ValueError("Received no files, expected at least one.")
    for path in paths:
        if not path.name.endswith((".weights.h5", ".keras")):
            raise ValueError(
                f"Received {path}, expected a .weights.h5 or .keras file as "
                "keras.callbacks.ModelCheckpoint writes them."
            )
        if not path.is_file():
            raise ValueError(f"{path} does not exist, expected a weights file.")
    return paths


def _epochs_of(paths: list[Path], epochs: Iterable[int] | None) -> list[int]:
    """The epoch of each file, checked to increase from 1 or later."""
    if epochs is None:
        return list(range(1, len(paths) + 1))
    numbers: list[Any] = [operator.index(epoch) for epoch in epochs]
    increasing = all(a < b for a, b in itertools.pairwise([0, *numbers]))
    if len(numbers) != len(paths) or not increasing:
        raise ValueError(
            f"Received epochs {numbers}, expected {len(paths)} increasing "
            "numbers from 1 on, one for each file."
        )
    return numbers
