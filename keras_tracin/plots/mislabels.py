"""Figures of wrong labels: recall, classes, and distributions of scores.

Public as `keras_tracin.plots`.

Synopsis:

    scores = tracin.self_influence()
    plots.recall_curve(scores, is_mislabeled)
    plots.recall_curve({"TracIn": scores}, is_mislabeled)
    plots.mislabeled_by_class(scores, labels, is_mislabeled)
    plots.score_distribution(scores, is_mislabeled)
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_tracin.evaluation import MislabelDetection, mislabel_detection
from keras_tracin.plots.figures import (
    OPPONENT,
    PROPONENT,
    REFERENCE,
    WRONG,
    figure_of,
    new_axes,
)
from keras_tracin.plots.scores import (
    Scores,
    all_scores,
    check_finite,
    named_scores,
)
from keras_tracin.results import Attribution, Ranking, SelfInfluence, TopK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BINS = 60
_COLOURS = {"proponents": PROPONENT, "opponents": OPPONENT}


def recall_curve(scores: Any, is_mislabeled: Any) -> Figure:
    """Draws the recall of wrong labels when high scores are inspected first.

    The x-axis is the share of examples inspected, the y-axis the share of wrong
    labels found among them. An ideal and a random order are drawn for
    comparison. Equal scores are inspected in reading order. The legend gives
    the area under each ROC curve, `MislabelDetection.auc`.

    Example:
    ```python
    figure = plots.recall_curve(tracin.self_influence(), y_train != y_true)
    figure.savefig("recall.png")
    ```

    Args:
        scores: a `SelfInfluence` or an array `[n]`; or a mapping from names in
            the legend to several of them. Larger scores are inspected first.
        is_mislabeled: booleans `[n]` in reading order, or a dict of booleans
            by id.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if a result has not one score for each example.
        ValueError: if there is no curve, if lengths differ, if a score is
            NaN, or if no label is wrong or all of them are; or if booleans in
            reading order are given for scores that are ranked.
    """
    axes = new_axes()
    curves = named_scores(scores, "scores")
    if not curves:
        raise ValueError("`scores` should hold a curve. Received none.")
    for name, curve in curves.items():
        try:
            detection = _detect(curve, is_mislabeled)
        except ValueError as error:
            raise ValueError(f"There is no curve '{name}'. {error}") from error
        inspected = np.linspace(0, 1, len(detection.recall))
        label = f"{name}, AUC {detection.auc:.3f}"
        axes.plot(inspected, detection.recall, linewidth=2, label=label)
    _draw_references(axes, detection.is_mislabeled.mean())
    _label_recall(axes, int(detection.is_mislabeled.sum()), len(detection.ids))
    return figure_of(axes)


def mislabeled_by_class(
    scores: Any,
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
        f"epoch {run[k].epoch}": kt.TracIn(
            model, train, run.select([k])
        ).self_influence()
        for k in (0, 4, 9)
    }
    plots.mislabeled_by_class(scores, y_train, y_train != y_true)
    ```

    Args:
        scores: a `SelfInfluence` or an array `[n]`; or a mapping from names of
            groups of bars to several of them, such as the self-influence at
            different checkpoints.
        labels: labels `[n]` in reading order, or a dict of labels by id, right
            or wrong, as used in training.
        is_mislabeled: booleans, likewise.
        share: share of the examples to inspect, highest scores first.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if a result has not one score for each example.
        ValueError: if there are no scores, if lengths differ, or if `share`
            is not between 0 and 1; or if labels in reading order are given
            for scores that are ranked.
    """
    groups = named_scores(scores, "scores")
    lengths = {len(labels), len(is_mislabeled)}
    lengths |= {len(group.values) for group in groups.values()}
    if not groups or len(lengths) != 1:
        raise ValueError(
            "`scores`, `labels` and `is_mislabeled` should be of the same "
            f"examples. Received lengths {sorted(lengths)} for {len(groups)} "
            "scores."
        )
    if not 0 < share <= 1:
        raise ValueError(
            f"`share` should be above 0 and at most 1. Received: {share!r}."
        )
    count = math.ceil(share * len(labels))
    found: dict[str, np.ndarray] = {}  # labels, by legend
    for name, group in groups.items():
        own_labels = group.beside(labels, "labels")
        wrong = group.flags(is_mislabeled, "is_mislabeled")
        first = np.argsort(-group.values, kind="stable")[:count]
        wrong_labels = own_labels[first][wrong[first]]
        found[f"{name}: {len(wrong_labels):,} of {wrong.sum():,}"] = (
            wrong_labels
        )
    classes = np.unique(own_labels)
    axes = new_axes(7.2, 3.6)
    width = 0.8 / len(groups)
    for i, (legend, wrong_labels) in enumerate(found.items()):
        heights = [np.count_nonzero(wrong_labels == c) for c in classes]
        left = np.arange(len(classes)) - 0.4 + width * (i + 0.5)
        axes.bar(left, heights, width, label=legend)
    axes.set_xticks(np.arange(len(classes)), [str(c) for c in classes])
    axes.set(xlabel="Label", ylabel="Wrong labels found")
    axes.locator_params(axis="y", integer=True)
    axes.set_title(
        f"Wrong labels in the top {share:.0%} by self-influence", fontsize=10
    )
    axes.grid(alpha=0.25, axis="y")
    axes.set_axisbelow(True)
    axes.set_ylim(top=1.2 * axes.get_ylim()[1])  # room for the legend
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=3)
    return figure_of(axes)


def score_distribution(
    scores: Any, is_mislabeled: Any = None, *, name: str | None = None
) -> Figure:
    """Draws the distributions of scores of right and of wrong labels.

    The bars of each distribution add up to 100%, so that a few wrong labels are
    visible beside many right ones: the less the two overlap, the better scores
    separate them. If no score is negative, the axis is logarithmic, and scores
    of zero are at its left end.

    Example:
    ```python
    plots.score_distribution(tracin.self_influence(), y_train != y_true)
    plots.score_distribution(tracin.influence(test))
    ```

    Args:
        scores: any result of a method, or an array `[n]`. The scores of all
            queries of an `Attribution` are one distribution; those of a
            `TopK` are two, of proponents and of opponents.
        is_mislabeled: booleans `[n]` in reading order, or a dict of booleans
            by id; by default there is a single distribution.
        name: name of the scores, below the axis; by default what they are.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no scores, if lengths differ, or if a score
            is NaN or infinite; or if booleans in reading order are given for
            scores that are ranked.
    """
    parts = all_scores(scores, "scores")
    values = np.concatenate([part.values for part in parts.values()])
    check_finite(values, "scores")
    wrong = None
    if is_mislabeled is not None:
        flags = [
            p.flags(is_mislabeled, "is_mislabeled") for p in parts.values()
        ]
        wrong = np.concatenate(flags)
    axes = new_axes(5.6, 3.4)
    edges, values = _bins(axes, values)
    if wrong is not None:
        sides = {
            f"right label: {(~wrong).sum():,}": (values[~wrong], REFERENCE),
            f"wrong label: {wrong.sum():,}": (values[wrong], WRONG),
        }
    else:
        ends = np.cumsum([len(part.values) for part in parts.values()])
        split = np.split(values, ends[:-1])
        sides = {
            f"{title}: {len(part):,}": (part, _COLOURS.get(title, REFERENCE))
            for title, part in zip(parts, split, strict=True)
        }
    for label, (side, colour) in sides.items():
        share = np.full(len(side), 1 / max(1, len(side)))
        axes.hist(
            side, edges, weights=share, color=colour, alpha=0.6, label=label
        )
    many = isinstance(scores, Attribution | TopK | Ranking)
    unit = "scores" if many else "examples"
    axes.set(xlabel=name or _describe(scores), ylabel=f"Share of the {unit}")
    axes.locator_params(axis="y", steps=[1, 2, 5, 10])  # whole percentages
    axes.yaxis.set_major_formatter("{x:.0%}")
    if len(sides) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure_of(axes)


def _detect(scores: Scores, is_mislabeled: Any) -> MislabelDetection:
    """Compares scores with the truth about the labels."""
    if not scores.is_in_order:
        is_mislabeled = scores.flags(is_mislabeled, "is_mislabeled")
    if scores.ids is None:
        return mislabel_detection(scores.values, is_mislabeled)
    result = SelfInfluence(scores.values, scores.ids)
    return mislabel_detection(result, is_mislabeled)


def _describe(scores: Any) -> str:
    """What scores are, in words for an axis."""
    if isinstance(scores, Attribution | TopK):
        count = len(scores.query_ids)
        queries = "a query" if count == 1 else f"{count:,} queries"
        return f"Score for {queries}"
    return "Score" if isinstance(scores, Ranking) else "Self-influence"


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
