"""The batches of a recorded training, as positions among its examples.

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
from keras_tracin.data.folders import read_folder
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
        rates: the learning rate that each step applied, float64 `[T]`.
        rows: for each step, the positions of its examples among those held.
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
        run: a run with its initial weights.
        train: the data that was trained on.
        held: the same in memory.
        batches: for runs that do not record their batches: the batch size,
            where batches were read in order, or the ids of each step's batch.

    Raises:
        ValueError: if it is not known which examples were in which batch, or
            if ids are not among the examples.
    """
    assert run.learning_rates is not None
    count = run[-1].step or 0
    if batches is not None:
        ids = _given_ids(batches, train, held, count)
    else:
        ids = _recorded_ids(run) or _read_ids(train, held)
    listed = list(itertools.islice(ids, count))
    if len(listed) < count:
        raise ValueError(
            f"`batches` should name the batch of each of the {count} steps of "
            f"{run!r}. Received {len(listed)}."
        )
    ids_of_steps = np.concatenate(listed)
    rows = held.positions_of(ids_of_steps)
    missing = ids_of_steps[rows < 0]
    if len(missing):
        raise ValueError(
            "`train` should hold every example that was trained on. "
            f"Received data without the ids {missing[:5].tolist()}."
        )
    ends = np.cumsum([len(batch) for batch in listed])
    return Steps(
        run.learning_rates[:count],
        tuple(np.split(rows, ends[:-1])),
    )


def _recorded_ids(run: TrainingRun) -> Iterator[np.ndarray] | None:
    """The ids of all batches, if the run has them."""
    assert run.directory is not None
    entries = run_manifest.read(run.directory)["segments"]
    segments = [
        run_manifest.read_arrays(run.directory, entry) for entry in entries
    ]
    if not all({"ids", "batch_sizes"} <= s.keys() for s in segments):
        return None
    return (
        ids
        for s in segments
        for ids in np.split(s["ids"], np.cumsum(s["batch_sizes"])[:-1])
    )


def _given_ids(
    batches: Any, train: Any, held: HeldExamples, count: int
) -> Iterator[np.ndarray]:
    """The ids of all batches, from the argument `batches`."""
    if isinstance(batches, int | np.integer):
        if isinstance(batches, bool) or batches < 1:
            raise ValueError(
                "`batches` should be a number of examples of 1 or more, or "
                f"the ids of each step's batch. Received: {batches!r}."
            )
        _check_one_order(train)
        starts = range(int(batches), len(held), int(batches))
        return itertools.cycle(np.split(held.ids, starts))
    listed = isinstance(batches, Sequence | np.ndarray)
    if not listed or isinstance(batches, str):
        raise TypeError(
            "`batches` should be a number of examples, or a list with the ids "
            f"of each step's batch. Received: {batches!r}."
        )
    return iter([np.asarray(ids) for ids in batches[:count]])


def _read_ids(train: Any, held: HeldExamples) -> Iterator[np.ndarray]:
    """The ids of all batches of a dataset that is read in one order only."""
    if not isinstance(train, tf.data.Dataset):
        raise ValueError(
            "The run does not say which examples were in which batch, and "
            "`model.fit` shuffles what is no `tf.data.Dataset`. " + _REMEDY
        )
    _check_one_order(train)
    sizes = [len(tf.nest.flatten(element)[0]) for element in train]
    return itertools.cycle(np.split(held.ids, np.cumsum(sizes)[:-1]))


def _check_one_order(train: Any) -> None:
    """Refuses a dataset that has another order each time it is read."""
    same = True
    if isinstance(train, DatasetWithIds):
        first, second = ([ids.numpy() for ids, _ in train.paired] for _ in "ab")
        same = np.array_equal(np.concatenate(first), np.concatenate(second))
    elif isinstance(train, tf.data.Dataset):
        folder = read_folder(train)
        same = folder is None or not folder.shuffles
    if not same:
        raise ValueError(
            "The run does not say which examples were in which batch, and "
            "the dataset has another order each time it is read. " + _REMEDY
        )
