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


# Of a summary: scores by their heads, and which two are compared.
_SUMMARIZED = {
    "loss": _scores.LOSS,
    "run": _scores.RUN,
    "run and folds": _scores.RUN_AND_FOLDS,
    "cleanlab": _scores.CLEANLAB,
}
_DIFFERENCES = (
    ("run", "loss"),
    ("run and folds", "loss"),
    ("run and folds", "cleanlab"),
)


def summary(settings: dict[str, Sequence[Measured]]) -> str:
    """A line for each setting: AUC, differences, sizes, as Markdown.

    Args:
        settings: by title, those of each seed.
    """
    heads = [
        "",
        "seeds",
        *(f"AUC, {head}" for head in _SUMMARIZED),
        *(f"{one} less {other}" for one, other in _DIFFERENCES),
        *(f"size, {head}" for head in _SUMMARIZED if head != "loss"),
    ]
    lines = [heads, ["---", *("---:" for _ in heads[1:])]]
    for title, benches in settings.items():
        rows = {
            head: [bench.row(name) for bench in benches]
            for head, name in _SUMMARIZED.items()
        }

        def of(head: str, column: str, rows=rows) -> list[float]:
            return [row[column] for row in rows[head] if row and column in row]

        def less(one: str, other: str, rows=rows) -> list[float]:
            return [
                a["AUC"] - b["AUC"]
                for a, b in zip(rows[one], rows[other], strict=True)
                if a and b and "AUC" in a
            ]

        if not of("run", "AUC"):
            continue
        aucs = [of(head, "AUC") for head in _SUMMARIZED]
        sizes = [of(head, "size") for head in _SUMMARIZED if head != "loss"]
        lines.append(
            [
                title,
                str(len(of("run", "AUC"))),
                *(f"{np.mean(a):.4f}" if a else "" for a in aucs),
                *(mean_and_interval(less(*d), "+.4f") for d in _DIFFERENCES),
                *(f"{np.mean(s):.2f}" if s else "" for s in sizes),
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def by_score(settings: dict[str, Sequence[Measured]]) -> str:
    """The AUC of all scores, a column for each setting, as Markdown.

    Args:
        settings: by title, those of each seed.
    """
    lines = [["AUC", *settings], ["---", *("---:" for _ in settings)]]
    for name in (*_scores.IN_RUN, *_scores.OUT_OF_FOLD, *_scores.PEERS):
        cells = []
        for benches in settings.values():
            rows = [bench.row(name) for bench in benches]
            known = [row["AUC"] for row in rows if row and "AUC" in row]
            cells.append(f"{np.mean(known):.4f}" if known else "")
        if any(cells):
            lines.append([name, *cells])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


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
