"""Reading and checking the parts of a training run.

Synopsis:

    manifest = run_manifest.read(directory)
    segments = read_segments(directory, manifest)
    mean_rates(segments, 0, 100)             # {position in weights: rate}
"""

from __future__ import annotations

import itertools
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.runs import manifest as run_manifest
from keras_tracin.runs.saved import SavedWeights


@dataclass(frozen=True)
class Snapshot:
    """Saved weights, and the state of the run that they are of.

    Attributes:
        end: Number of entries of the run's rates that led to them.
        step: Number of steps that led to them, or None if unknown.
        epoch: The epoch, counted from 1.
        logs: The metrics at that moment.
        saved: The files.
    """

    end: int
    step: int | None
    epoch: int
    logs: Mapping[str, float]
    saved: SavedWeights


@dataclass(frozen=True)
class Segment:
    """Consecutive steps, and the variables that they updated.

    Attributes:
        start: Number of steps before it.
        rates: float64 `[n, k]`, the rates of each set of variables.
        updated: `k` sets of positions in `model.weights`; None if unknown.
    """

    start: int
    rates: np.ndarray
    updated: tuple[frozenset[int], ...] | None


def read_segments(directory: Path, manifest: dict) -> list[Segment]:
    """Reads the rates of all segments, in order, and checks their files."""
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
        check_rates(rates, str(path), first_step=entry["first_step"])
        segments.append(Segment(entry["first_step"] - 1, rates, updated))
    return segments


def mean_rates(
    segments: Sequence[Segment], start: int, stop: int
) -> dict[int, float] | None:
    """The mean rate of each variable that steps updated, by position.

    Args:
        segments: the segments of the run.
        start: the number of steps before the first.
        stop: the number of steps up to the last.

    Returns:
        None where it is unknown which variables were updated.
    """
    inside = [
        segment
        for segment in segments
        if start <= segment.start < stop and len(segment.rates)
    ]
    columns: dict[tuple, list[int]] = {}  # alike in all segments
    positions: set[int] = set()
    for segment in inside:
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
            for segment in inside
        )
        columns.setdefault(sets, []).append(position)
    means: dict[int, float] = {}
    for sets, alike in columns.items():
        rates = [
            segment.rates[:, at].sum(axis=1)
            for segment, at in zip(inside, map(list, sets), strict=True)
        ]
        means |= dict.fromkeys(alike, float(np.concatenate(rates).mean()))
    return means if inside else None


def check_rates(
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


def read_history(manifest: dict) -> tuple[list[int], dict[str, list[float]]]:
    """The epochs that ended, and their metrics by name."""
    ended = [s for s in manifest["segments"] if s["epoch_end"]]
    history: dict[str, list[float]] = {}
    for segment in ended:
        for name, value in segment["logs"].items():
            history.setdefault(name, []).append(value)
    return [segment["epoch"] for segment in ended], history


def read_notes(
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


def read_weighted(manifest: dict) -> bool | None:
    known = [segment.get("weighted") for segment in manifest["segments"]]
    if any(known):
        return True
    return None if None in known else False


def check_weight_files(files: Iterable[str | os.PathLike]) -> list[Path]:
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
        if not path.name.endswith(run_manifest.READABLE):
            raise ValueError(
                f"Received {path}, expected a .weights.h5 or .keras file as "
                "keras.callbacks.ModelCheckpoint writes them. "
                f"{run_manifest.CONVERT}"
            )
        if not path.is_file():
            raise ValueError(f"{path} does not exist, expected a weights file.")
    return paths


def check_epochs(paths: list[Path], epochs: Iterable[int] | None) -> list[int]:
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
