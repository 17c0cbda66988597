"""Figures of scores that find wrong labels, as a table."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import scipy.stats

import keras_tracin as kt
from benchmarks import _labels_scores as _scores
from benchmarks._labels_results import Row

TREATMENTS = ("right", "removed")
AS_GIVEN, ALL_RIGHT = "labels as given", "right labels"
_COLUMNS = ("AUC", "AP", "precision", "size", "flagged", *TREATMENTS)
_AGAINST = {"loss": _scores.LOSS, "cleanlab": _scores.CLEANLAB}


class Measured(Protocol):
    """A setting with one seed, whose figures are known in part."""

    def row(self, name: str) -> Row | None:
        """The figures of a score by column, if they are known."""

    def accuracy(self, name: str) -> float | None:
        """The accuracy of a network, if it is known."""


def figures(scores: np.ndarray, flagged: np.ndarray, wrong: np.ndarray) -> Row:
    """The figures of a score by column.

    Args:
        scores: `[n]`.
        flagged: which labels are said to be wrong, `[n]`.
        wrong: which labels are wrong, `[n]`.
    """
    if not wrong.any():
        return {"flagged": float(flagged.mean())}
    detection = kt.evaluation.mislabel_detection(scores, wrong)
    return {
        "AUC": detection.auc,
        "AP": float(detection.precision[detection.is_mislabeled].mean()),
        "precision": float(wrong[flagged].mean() if flagged.any() else 0),
        "size": float(flagged.sum() / wrong.sum()),
    }


def table(title: str, benches: Sequence[Measured]) -> str:
    """All figures that are known, as means over seeds, as Markdown.

    Args:
        title: what the seeds have in common.
        benches: one for each seed.
    """
    lines: dict[str, list[str]] = {}
    for name in (*_scores.IN_RUN, *_scores.OUT_OF_FOLD, *_scores.PEERS):
        rows = [bench.row(name) for bench in benches]
        cells = [
            mean_and_interval([row[c] for row in rows if row and c in row])
            for c in _COLUMNS
        ]
        for other in _AGAINST.values():
            others = (bench.row(other) for bench in benches)
            cells.append(
                mean_and_interval(
                    [
                        a["AUC"] - b["AUC"]
                        for a, b in zip(rows, others, strict=True)
                        if a and b and name != other and "AUC" in a
                    ],
                    "+.4f",
                )
            )
        if any(cells):
            lines[name] = cells
    heads = [*_COLUMNS, *(f"less {other}" for other in _AGAINST)]
    used = [
        column
        for column in range(len(heads))
        if any(cells[column] for cells in lines.values())
    ]
    printed = [
        [title, *(heads[column] for column in used)],
        ["---", *("---:" for _ in used)],
        *([name, *(cells[c] for c in used)] for name, cells in lines.items()),
    ]
    text = [f"| {' | '.join(cells)} |" for cells in printed]
    for key in (AS_GIVEN, ALL_RIGHT):
        accuracies = [bench.accuracy(key) for bench in benches]
        if known := [value for value in accuracies if value is not None]:
            text.append(f"\nAccuracy with {key}: {mean_and_interval(known)}")
    return "\n".join(text)


def mean_and_interval(values: list[float], form: str = ".4f") -> str:
    """The mean and, of several values, the half of its 95% interval.

    Args:
        values: one for each seed.
        form: format of a number.
    """
    if not values:
        return ""
    mean = f"{np.mean(values):{form}}"
    if len(values) == 1:
        return mean
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * error
    return f"{mean} ± {half:.4f}"
