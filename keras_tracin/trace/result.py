"""What tracing a training has found.

Synopsis:

    trace = TrainingTrace.load("runs/traced")
    trace.scores            # [num_queries, num_train]
    trace.steps.real        # [num_steps, num_queries]
    trace.correlation()     # of real and first-order change
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
    """What every step did; `t` counts the optimizer's updates, `m` queries.

    Attributes:
        learning_rate: `[t]`, as applied.
        real: `[t, m]` losses before the step minus those after.
        first_order: `[t, m]` estimates of that, Σ_i F_i.
        along_step: `[t, m]` estimates from the parameter step that the
            optimizer took, (w_t - w_{t+1}) · ∇ℓ(w_t, z').
        unattributed: `[t, m]` what of `real` no example caused.
        ids: for each step, the ids of its batch.
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
    """What `trace_training` found.

    Attributes:
        scores: `[num_queries, num_train]` float64, TracInIdeal.
        unattributed: `[num_queries]` what no example accounts for.
        loss_drop: `[num_queries]` each query's total over all steps.
        query_ids: `[num_queries]`.
        train_ids: `[num_train]` in ascending order.
        steps: the table of steps.
        history: what `model.fit` returned; of a trace that was resumed or
            read from disk, with the epochs recorded before.
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
        """Reads what `trace_training` has recorded in a directory so far.

        Args:
            directory: that of the trace.

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
            segments: the arrays of each, in order.
            history: what `fit` reported.
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
            places = np.searchsorted(train_ids, segment["score_ids"])
            scores[:, places] += segment["scores"]
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
        """The scores as every method returns them."""
        return Attribution(
            self.scores.astype(np.float32), self.query_ids, self.train_ids
        )

    def correlation(self, estimate: str = "first_order") -> float:
        """Pearson's, over steps and queries, of real and estimated change.

        Args:
            estimate: `"first_order"` or `"along_step"`.

        Raises:
            ValueError: for another estimate.
        """
        if estimate not in ESTIMATES:
            raise ValueError(
                "`estimate` should be 'first_order' or 'along_step'. "
                f"Received: {estimate!r}."
            )
        guessed = getattr(self.steps, estimate).ravel()
        return float(np.corrcoef(self.steps.real.ravel(), guessed)[0, 1])


def pack(rows: Sequence[Mapping[str, Any]], query_ids) -> dict[str, np.ndarray]:
    """The arrays of a segment, from the rows of its steps.

    Args:
        rows: for each step its row of every column of `StepTable`, and the
            `shares [m, b]` of its examples.
        query_ids: `[m]`.
    """
    arrays = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    ids = np.concatenate([row["ids"] for row in rows])
    shares = np.concatenate([row["shares"] for row in rows], axis=1)
    score_ids, places = np.unique(ids, return_inverse=True)
    scores = np.zeros((len(score_ids), len(query_ids)))
    np.add.at(scores, places, shares.T)
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
