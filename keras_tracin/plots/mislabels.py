"""Figures of wrong labels: recall, classes, and distributions of scores.

Public as `keras_tracin.plots`.

Synopsis:

    suspicion = {"self-influence": tracin.self_influence().scores}
    plots.recall_curve(suspicion, is_mislabeled)
    plots.mislabeled_by_class(suspicion, labels, is_mislabeled)
    plots.score_distribution(suspicion["self-influence"], is_mislabeled)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.evaluation import mislabel_detection
from keras_tracin.plots.columns import column
from keras_tracin.plots.figures import REFERENCE, WRONG, figure_of, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 60


def recall_curve(scores: Mapping[str, Any], is_mislabeled: Any) -> Figure:
    """Draws the recall of wrong labels when high scores are inspected first.

    The x-axis is the share of examples inspected, the y-axis the share of wrong
    labels found among them. An ideal and a random order are drawn for
    comparison. Equal scores are inspected in reading order. The legend gives
    the area under each ROC curve, `MislabelDetection.auc`.

    Example:
    ```python
    scores = {"self-influence": tracin.self_influence()}
    plots.recall_curve(scores, y_train != y_true).savefig("recall.png")
    ```

    Args:
        scores: a mapping from names in the legend to a `SelfInfluence` or an
            array `[n]`; larger scores are inspected first.
        is_mislabeled: booleans `[n]`, in the same order.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there is no curve, if lengths differ, if a score is
            NaN, or if no label is wrong or all of them are.
    """
    axes = new_axes()
    if not scores:
        raise ValueError("`scores` should hold a curve. Received none.")
    for name, values in scores.items():
        try:
            detection = mislabel_detection(values, is_mislabeled)
        except ValueError as error:
            raise ValueError(f"There is no curve '{name}'. {error}") from error
        inspected = np.linspace(0, 1, len(detection.recall))
        label = f"{name}, AUC {detection.auc:.3f}"
        axes.plot(inspected, detection.recall, linewidth=2, label=label)
    _draw_references(axes, detection.is_mislabeled.mean())
    _label_recall(axes, int(detection.is_mislabeled.sum()), len(detection.ids))
    return figure_of(axes)


def mislabeled_by_class(
    scores: Mapping[str, Any],
    labels: Any,
    is_mislabeled: Any,
    *,
    share: float = 0.1,
) -> Figure:
    """Draws the number of wrong labels of each class among high scores.

    As in figure 8 of Pruthi et al. (2020), checkpoints can be compared, which
    highlight different labels.

    Example:
    ```python
    scores = {
        f"epoch {run[k].epoch}": kt.TracIn(model, train, run.select([k]))
        .self_influence()
        .scores
        for k in (0, 4, 9)
    }
    plots.mislabeled_by_class(scores, y_train, y_train != y_true)
    ```

    Args:
        scores: a mapping from names of groups of bars to arrays `[n]`, usually
            self-influence at c checkpoint.
        labels: labels `[n]`, right or wrong, as used in training.
        is_mislabeled: booleans `[n]`.
        share: share of the examples to inspect, highest scores first.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no scores, if lengths differ, or if `share`
            is not between 0 and 1.
    """
    labels, wrong = np.asarray(labels), np.asarray(is_mislabeled, dtype=bool)
    lengths = {len(labels), len(wrong), *(len(s) for s in scores.values())}
    if not scores or len(lengths) != 1:
        raise ValueError(
            "`scores`, `labels` and `is_mislabeled` should be of the same "
            f"examples. Received lengths {sorted(lengths)} for {len(scores)} "
            "scores."
        )
    if not 0 < share <= 1:
        raise ValueError(
            f"`share` should be above 0 and at most 1. Received: {share!r}."
        )
    classes = np.unique(labels)
    count = math.ceil(share * len(labels))
    axes = new_axes(7.2, 3.6)
    width = 0.8 / len(scores)
    for i, (name, values) in enumerate(scores.items()):
        first = np.argsort(-np.asarray(values), kind="stable")[:count]
        wrong_labels = labels[first][wrong[first]]
        heights = [np.count_nonzero(wrong_labels == c) for c in classes]
        left = np.arange(len(classes)) - 0.4 + width * (i + 0.5)
        label = f"{name}: {len(wrong_labels):,} of {wrong.sum():,}"
        axes.bar(left, heights, width, label=label)
    axes.set_xticks(np.arange(len(classes)), [str(c) for c in classes])
    axes.set(xlabel="Label", ylabel="Wrong labels found")
    axes.set_title(
        f"Wrong labels in the top {share:.0%} by self-influence", fontsize=10
    )
    axes.grid(alpha=0.25, axis="y")
    axes.set_axisbelow(True)
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    return figure_of(axes)


def score_distribution(
    scores: Any, is_mislabeled: Any = None, *, name: str = "Self-influence"
) -> Figure:
    """Draws the distributions of scores of right and of wrong labels.

    The bars of each distribution add up to 100%, so that a few wrong labels are
    visible beside many right ones: the less the two overlap, the better scores
    separate them. If no score is negative, the axis is logarithmic, and scores
    of zero are at its left end.

    Example:
    ```python
    plots.score_distribution(tracin.self_influence(), y_train != y_true)
    ```

    Args:
        scores: a `SelfInfluence` or an array `[n]`.
        is_mislabeled: booleans `[n]` in the same order; by default there is a
            single distribution.
        name: name of the scores, below the axis.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no scores, if lengths differ, or if a score
            is NaN or infinite.
    """
    values = np.asarray(getattr(scores, "scores", scores), dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(
            "`scores` should be finite numbers [n]. Received: shape "
            f"{values.shape}, {np.count_nonzero(~np.isfinite(values))} of "
            "them NaN or infinite."
        )
    wrong = column("is_mislabeled", is_mislabeled, len(values))
    axes = new_axes(5.6, 3.4)
    edges, values = _bins(axes, values)
    if wrong is None:
        sides = {"all": (values, REFERENCE)}
    else:
        wrong = wrong.astype(bool)
        sides = {
            f"right label: {(~wrong).sum():,}": (values[~wrong], REFERENCE),
            f"wrong label: {wrong.sum():,}": (values[wrong], WRONG),
        }
    for label, (side, colour) in sides.items():
        share = np.full(len(side), 1 / max(1, len(side)))
        axes.hist(
            side, edges, weights=share, color=colour, alpha=0.6, label=label
        )
    axes.set(xlabel=name, ylabel="Share of the examples")
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])  # whole percentages
    axes.yaxis.set_major_formatter("{x:.0%}")
    if wrong is not None:
        axes.legend(frameon=False, fontsize=9)
    return figure_of(axes)


def _bins(axes: Axes, values: np.ndarray) -> tuple[list[float], np.ndarray]:
    """Edges of bins, evenly spaced on the axis, and the values within them."""
    lowest, highest = values.min(), values.max()
    if lowest < 0 or highest <= 0:
        return np.histogram_bin_edges(values, _BINS).tolist(), values
    axes.set_xscale("log")
    # The smallest may be many powers of ten below the others.
    positive = values[values > 0]
    lowest = max(np.quantile(positive, 0.001), highest * 1e-12)
    if lowest == highest:
        lowest, highest = lowest / 2, highest * 2
    edges = np.geomspace(lowest, highest, _BINS + 1)
    return edges.tolist(), np.clip(values, edges[0], edges[-1])


def _draw_references(axes: Axes, share_wrong: float) -> None:
    """Draws the ideal order, all wrong labels first, and a random one."""
    for name, line, corner in (
        ("ideal", "--", (share_wrong, 1)),
        ("random", ":", (0, 0)),
    ):
        x, y = zip((0, 0), corner, (1, 1), strict=True)
        axes.plot(x, y, line, color=REFERENCE, lw=1, zorder=1, label=name)


def _label_recall(axes: Axes, num_wrong: int, n: int) -> None:
    axes.set_title(f"Finding {num_wrong:,} wrong labels among {n:,} examples")
    axes.set_xlabel("Share of the examples inspected, highest scores first")
    axes.set_ylabel("Share of the wrong labels found")
    axes.set(xlim=(0, 1), ylim=(0, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:.0%}")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
