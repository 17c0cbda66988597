"""A run cut into segments, in each of which training is taken to be stationary.

Synopsis:

    for segment in cut_run(TrainingRun("runs/digits"), 3):
        segment.rate_sum       # Σ η_t over its steps
        segment.checkpoints    # in order
"""

from __future__ import annotations

import itertools
import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_tracin.runs.checkpoint import Checkpoint
from keras_tracin.runs.run import TrainingRun

Segments = int | str | Sequence[Sequence[int | Checkpoint]] | None

_USUAL = 3  # segments (Bae et al. 2024)
_FACTOR = 2.0  # by which rates or losses differ from one phase to the next


@dataclass(frozen=True)
class Segment:
    """Steps of a run that follow one another.

    Attributes:
        checkpoints: the checkpoints among them, in order. The last one is the
            end of the segment.
        rate_sum: the sum of the learning rates of its steps, η_l K_l.
    """

    checkpoints: tuple[Checkpoint, ...]
    rate_sum: float


def cut_run(run: TrainingRun, segments: Segments = None) -> list[Segment]:
    """Cuts a run into segments, in order.

    Checkpoints that steps with a learning rate of zero led to moved nothing,
    and are left out.

    Args:
        run: the run; steps after its last checkpoint are left out.
        segments: the number of segments, which end at the checkpoints that
            are nearest to equal numbers of steps, each with a checkpoint at
            least; by default 3, or as many as there are checkpoints.
            `"rates"` begins a segment where a checkpoint's mean learning rate,
            and `"loss"` where its loss, is twice or half that of the
            segment's first checkpoint. Or the epochs, or checkpoints, of each
            segment, as lists.

    Raises:
        ValueError: if the run does not know the rate of every step, has no
            checkpoint with a learning rate above zero, or cannot be cut so.
    """
    if any(checkpoint.learning_rate_sum is None for checkpoint in run):
        raise ValueError(
            "Segments need the learning rate of every step. Received a run "
            "adopted from weight files, which knows one rate for each; record "
            "one by `TracInCheckpoint`, or use `TracIn`."
        )
    moving = [at for at, own in enumerate(run) if own.learning_rate_sum]
    if not moving:
        raise no_rates(run)
    rates = [run[at].learning_rate for at in moving]
    run = run.select(moving)
    groups = _groups(run, segments, rates)
    kept = iter(run.select(list(itertools.chain(*groups))))
    cut = []
    for group in groups:
        checkpoints = tuple(next(kept) for _ in group)
        sums = [
            checkpoint.learning_rate_sum or 0.0 for checkpoint in checkpoints
        ]
        cut.append(Segment(checkpoints, math.fsum(sums)))
    return cut


def no_rates(run: TrainingRun) -> ValueError:
    """The error of a run whose checkpoints no step led to.

    Args:
        run: the run.
    """
    return ValueError(
        "No checkpoint of the run has a learning rate above zero. "
        f"Received: {run!r}. Train for at least one epoch with "
        "`TracInCheckpoint` among the callbacks."
    )


def _groups(
    run: TrainingRun, segments: Segments, rates: Sequence[float]
) -> list[list[int]]:
    """Positions in the run of each segment's checkpoints."""
    if segments is None:
        return _equal_pieces(run, min(_USUAL, len(run)))
    if isinstance(segments, str):
        if segments == "rates":
            return _phases(rates)
        return _phases(_losses(run, segments))
    if isinstance(segments, numbers.Integral):
        count = 0 if isinstance(segments, bool) else int(segments)
        if not 1 <= count <= len(run):
            raise ValueError(
                f"`segments` should be from 1 to {len(run)}, the number of "
                "the run's checkpoints, of which each segment needs one. "
                f"Received: {segments!r}."
            )
        return _equal_pieces(run, count)
    return _listed(run, segments)


def _equal_pieces(run: TrainingRun, count: int) -> list[list[int]]:
    steps = np.array([checkpoint.step for checkpoint in run], float)
    ends: list[int] = []
    for piece in range(1, count):
        nearest = int(np.argmin(abs(steps - steps[-1] * piece / count)))
        first = ends[-1] + 1 if ends else 0
        last = len(run) - 1 - (count - piece)
        ends.append(min(max(nearest, first), last))
    ends.append(len(run) - 1)
    starts = [0, *(end + 1 for end in ends[:-1])]
    return [
        list(range(start, end + 1))
        for start, end in zip(starts, ends, strict=True)
    ]


def _losses(run: TrainingRun, name: str) -> list[float]:
    """The losses by which phases are told."""
    if name != "loss":
        raise ValueError(
            "`segments` should be a number, 'rates', 'loss', or lists of "
            f"epochs. Received: {name!r}."
        )
    losses = [checkpoint.logs.get("loss", math.nan) for checkpoint in run]
    if not all(0 < loss < math.inf for loss in losses):
        raise ValueError(
            "`segments='loss'` needs a loss above zero in the logs of every "
            f"checkpoint. Received: {losses}. Give a number of segments, or "
            "the epochs of each."
        )
    return losses


def _phases(values: Sequence[float]) -> list[list[int]]:
    """Positions of values within a factor of two of the first of a phase."""
    groups: list[list[int]] = []
    first = 0.0
    for position, value in enumerate(values):
        if max(first, value) >= _FACTOR * min(first, value):
            groups.append([])
            first = value
        groups[-1].append(position)
    return groups


def _listed(run: TrainingRun, segments: Any) -> list[list[int]]:
    lists = isinstance(segments, Sequence) and all(
        isinstance(group, Sequence) and not isinstance(group, str)
        for group in segments
    )
    groups = (
        [[_position(run, item) for item in group] for group in segments]
        if lists
        else []
    )
    order = list(itertools.chain(*groups))
    increases = all(a < b for a, b in itertools.pairwise(order))
    if not (groups and all(groups) and increases):
        raise ValueError(
            "`segments` should hold the epochs of one checkpoint or more for "
            "each segment, in the order of training and without repetition. "
            f"Received: {segments!r}."
        )
    return groups


def _position(run: TrainingRun, item: Any) -> int:
    """The position of a checkpoint, or of the only one of an epoch."""
    if isinstance(item, Checkpoint):
        found = [at for at, own in enumerate(run) if own.path == item.path]
    else:
        found = [at for at, own in enumerate(run) if own.epoch == item]
    if len(found) != 1:
        raise ValueError(
            f"`segments` names {item!r}, of which the run has {len(found)} "
            "checkpoints. Expected epochs of one checkpoint each, of "
            f"{[checkpoint.epoch for checkpoint in run]}, or checkpoints of "
            "this run."
        )
    return found[0]
