"""Which examples were in which batch of a recorded training.

Synopsis:

    held = HeldExamples.read(open_examples(train))
    steps = training_steps(run, train, held, batches=None)
    held.take(steps.rows[t]).data                 # the batch of step t
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.held import HeldExamples
from keras_tracin.runs import TrainingRun
from keras_tracin.runs import manifest as run_manifest

_REMEDY = (
    "Train with `kt.record_training`, which records it; or with "
    "`model.fit(..., shuffle=False)` and pass the batch size as `batches=`; or "
    "pass the ids of each step's batch, `batches=[[3, 1], [0, 2], ...]`."
)


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of a training.

    Attributes:
        rates: float64 `[T]`, the learning rate that each applied.
        rows: for each, where its examples are among those held.
    """

    rates: np.ndarray
    rows: tuple[np.ndarray, ...]

    def __len__(self) -> int:
        return len(self.rows)


def training_steps(
    run: TrainingRun, train: Any, held: HeldExamples, batches: Any = None
) -> Steps:
    """The steps up to a run's last checkpoint.

    Args:
        run: with the initial weights.
        train: what was trained on.
        held: the same in memory.
        batches: what the run does not say of its batches: a number, of
            examples in batches in reading order, or the ids of each step's.

    Raises:
        ValueError: if it is not known which examples were in which batch, or
            if ids are not among the examples.
    """
    assert run.learning_rates is not None
    count = run[-1].step or 0
    ids = _recorded(run) if batches is None else _given(batches, held, count)
    if ids is None:
        ids = _as_read(train, held)
    found = list(itertools.islice(ids, count))
    if len(found) < count:
        raise ValueError(
            f"`batches` should name the batch of each of the {count} steps of "
            f"{run!r}. Received {len(found)}."
        )
    ids_of_steps = np.concatenate(found)
    rows = held.positions_of(ids_of_steps)
    missing = ids_of_steps[rows < 0]
    if len(missing):
        raise ValueError(
            "`train` should hold every example that was trained on. "
            f"Received data without the ids {missing[:5].tolist()}."
        )
    ends = np.cumsum([len(one) for one in found])
    return Steps(
        run.learning_rates[:count],
        tuple(np.split(rows, ends[:-1])),
    )


def _recorded(run: TrainingRun) -> Iterator[np.ndarray] | None:
    """The ids of all batches, if the run has them."""
    assert run.directory is not None
    entries = run_manifest.read(run.directory)["segments"]
    arrays = [run_manifest.read_arrays(run.directory, one) for one in entries]
    if not all({"ids", "batch_sizes"} <= one.keys() for one in arrays):
        return None
    return (
        ids
        for one in arrays
        for ids in np.split(one["ids"], np.cumsum(one["batch_sizes"])[:-1])
    )


def _given(
    batches: Any, held: HeldExamples, count: int
) -> Iterator[np.ndarray]:
    if isinstance(batches, int | np.integer):
        if isinstance(batches, bool) or batches < 1:
            raise ValueError(
                "`batches` should be a number of examples of 1 or more, or "
                f"the ids of each step's batch. Received: {batches!r}."
            )
        starts = range(int(batches), len(held), int(batches))
        return itertools.cycle(np.split(held.ids, starts))
    listed = isinstance(batches, Sequence | np.ndarray)
    if not listed or isinstance(batches, str):
        raise TypeError(
            "`batches` should be a number of examples, or a list with the ids "
            f"of each step's batch. Received: {batches!r}."
        )
    return iter([np.asarray(ids) for ids in batches[:count]])


def _as_read(train: Any, held: HeldExamples) -> Iterator[np.ndarray]:
    """A dataset that is read in one order only is trained on in that order."""
    if not isinstance(train, tf.data.Dataset):
        raise ValueError(
            "The run does not say which examples were in which batch, and "
            "`model.fit` shuffles arrays. " + _REMEDY
        )
    if isinstance(train, DatasetWithIds):
        first, second = ([ids.numpy() for ids, _ in train.paired] for _ in "ab")
        same = np.array_equal(np.concatenate(first), np.concatenate(second))
        if not same:
            raise ValueError(
                "The run does not say which examples were in which batch, and "
                "the dataset has another order each time it is read. " + _REMEDY
            )
    sizes = [len(tf.nest.flatten(element)[0]) for element in train]
    return itertools.cycle(np.split(held.ids, np.cumsum(sizes)[:-1]))
