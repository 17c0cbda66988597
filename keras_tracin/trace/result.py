"""Results of tracing a training.

Synopsis:

    trace = TrainingTrace.load("runs/traced")
    trace.scores            # [num_queries, num_train]
    trace.steps.real        # [num_steps, num_queries]
    trace.correlation()     # of real and first-order changes
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.results import Attribution
from keras_tracin.trace.recording import read_segments, recorded_history

ESTIMATES = ("first_order", "along_step")


@dataclasses.dataclass(frozen=True)
class StepTable:
    """Changes of the queries' losses at every step.

    `t` is the number of optimizer updates, `m` that of queries.

    Attributes:
        learning_rate: learning rates as applied, `[t]`.
        real: losses before the step minus losses after it, `[t, m]`.
        first_order: first-order estimates of `real`, Σ_i F_i, `[t, m]`.
        along_step: first-order estimates of `real` along the step that the
            optimizer took, (w_t - w_{t+1}) · ∇ℓ(w_t, z'), `[t, m]`.
        unattributed: share of `real` that no example caused, `[t, m]`.
        ids: ids of the batch of each step.
    """

    learning_rate: np.ndarray
    real: np.ndarray
    first_order: np.ndarray
    along_step: np.ndarray
    unattributed: np.ndarray
    ids: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.learning_rate)


COLUMNS = tuple(f.name for f in dataclasses.fields(StepTable))[:-1]


@dataclasses.dataclass(frozen=True)
class TrainingTrace:
    """Result of `trace_training`.

    Attributes:
        scores: TracInIdeal, float64 `[num_queries, num_train]`.
        unattributed: share of `loss_drop` that no example caused,
            `[num_queries]`.
        loss_drop: total change of each query's loss over all steps,
            `[num_queries]`; positive if it fell.
        query_ids: ids of the queries, `[num_queries]`.
        train_ids: ids of the training examples, `[num_train]`, ascending.
        steps: the table of steps.
        history: history of all epochs, including those recorded before the
            trace was resumed.
    """

    scores: np.ndarray
    unattributed: np.ndarray
    loss_drop: np.ndarray
    query_ids: np.ndarray
    train_ids: np.ndarray
    steps: StepTable
    history: keras.callbacks.History

    @classmethod
    def load(cls, directory: str | os.PathLike) -> TrainingTrace:
        """Reads a finished or unfinished trace from disk.

        Args:
            directory: the `directory` of `trace_training`.

        Raises:
            ValueError: if there is no trace, or a file of it is damaged.
        """
        segments = read_segments(Path(directory), kind="trace")
        return cls.from_segments(segments, recorded_history(Path(directory)))

    @classmethod
    def from_segments(
        cls,
        segments: Sequence[Mapping[str, Any]],
        history: keras.callbacks.History,
    ) -> TrainingTrace:
        """Joins the segments of a recording; see `pack`.

        Args:
            segments: arrays of each segment, in order.
            history: metrics that `fit` reported.
        """
        steps = StepTable(
            **{
                name: np.concatenate([s[name] for s in segments])
                for name in COLUMNS
            },
            ids=[ids for segment in segments for ids in _batches(segment)],
        )
        train_ids = np.unique(
            np.concatenate([segment["score_ids"] for segment in segments])
        )
        query_ids = segments[0]["query_ids"]
        scores = np.zeros((len(query_ids), len(train_ids)))
        for segment in segments:
            columns = np.searchsorted(train_ids, segment["score_ids"])
            scores[:, columns] += segment["scores"]
        return cls(
            scores=scores,
            unattributed=steps.unattributed.sum(axis=0),
            loss_drop=steps.real.sum(axis=0),
            query_ids=query_ids,
            train_ids=train_ids,
            steps=steps,
            history=history,
        )

    def attribution(self) -> Attribution:
        """The scores as an `Attribution`, like those of every method."""
        return Attribution(
            self.scores.astype(np.float32), self.query_ids, self.train_ids
        )

    def correlation(self, estimate: str = "first_order") -> float:
        """Pearson correlation of real and estimated changes of the loss.

        It is taken over all pairs of a step and a query.

        Args:
            estimate: `"first_order"` or `"along_step"`.

        Raises:
            ValueError: if `estimate` is neither.
        """
        if estimate not in ESTIMATES:
            raise ValueError(
                "`estimate` should be 'first_order' or 'along_step'. "
                f"Received: {estimate!r}."
            )
        estimates = getattr(self.steps, estimate).ravel()
        return float(np.corrcoef(self.steps.real.ravel(), estimates)[0, 1])


def pack(rows: Sequence[Mapping[str, Any]], query_ids) -> dict[str, np.ndarray]:
    """Builds the arrays of a segment from the rows of its steps.

    Args:
        rows: rows of the steps, with every column of `StepTable` and the
            `shares [m, b]` of the examples.
        query_ids: ids of the queries, `[m]`.
    """
    arrays = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    ids = np.concatenate([row["ids"] for row in rows])
    shares = np.concatenate([row["shares"] for row in rows], axis=1)
    score_ids, inverse = np.unique(ids, return_inverse=True)
    scores = np.zeros((len(score_ids), len(query_ids)))
    np.add.at(scores, inverse, shares.T)
    sizes = [len(row["ids"]) for row in rows]
    return {
        **arrays,
        "ids": ids,
        "batch_sizes": np.array(sizes),
        "scores": scores.T,
        "score_ids": score_ids,
        "query_ids": query_ids,
    }


def _batches(segment: Mapping[str, Any]) -> list[np.ndarray]:
    ends = np.cumsum(segment["batch_sizes"])
    return np.split(segment["ids"], ends[:-1])
