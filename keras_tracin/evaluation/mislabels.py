"""Measures how well scores find wrong labels, and makes labels wrong.

An example with a wrong label is hard to learn, so that its self-influence is
large (Pruthi et al. 2020, section 4): inspect the largest first.

Synopsis:

    y = kt.evaluation.flip_labels(y_true, share=0.1, seed=0)
    ...  # train on y
    detection = kt.evaluation.mislabel_detection(
        tracin.self_influence(), y != y_true
    )
    detection.auc, detection.recall_at(0.1)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy

from keras_tracin.results import SelfInfluence
from keras_tracin.results.frames import pandas
from keras_tracin.results.of_examples import read_scores


@dataclasses.dataclass(frozen=True)
class MislabelDetection:
    """Detection of wrong labels by inspecting the largest scores first.

    Attributes:
        ids: ids `[n]` in the order of inspection; equal scores are in reading
            order.
        is_mislabeled: booleans `[n]`, in the same order.
        auc: area under the ROC curve: the probability that a wrong label has a
            larger score than a right one, ties counting one half. 1 is
            perfect, 0.5 is chance.
    """

    ids: np.ndarray
    is_mislabeled: np.ndarray
    auc: float

    @property
    def recall(self) -> np.ndarray:
        """Share of wrong labels found after 0, 1, … n examples, `[n + 1]`."""
        counts = np.cumsum(self.is_mislabeled)
        return np.concatenate([[0.0], counts / counts[-1]])

    @property
    def precision(self) -> np.ndarray:
        """Share of wrong labels among the first 1, … n examples, `[n]`."""
        inspected = np.arange(1, len(self.ids) + 1)
        return np.cumsum(self.is_mislabeled) / inspected

    def recall_at(self, share: float) -> float:
        """Recall after inspecting this share of the examples.

        Args:
            share: share of the examples, from 0 to 1.

        Raises:
            ValueError: if `share` is out of range.
        """
        return float(self.recall[self._count(share)])

    def precision_at(self, share: float) -> float:
        """Precision after inspecting this share of the examples.

        Args:
            share: share of the examples, from 0 to 1; at least one example is
                inspected.

        Raises:
            ValueError: if `share` is out of range.
        """
        return float(self.precision[max(1, self._count(share)) - 1])

    def _count(self, share: float) -> int:
        if not 0 <= share <= 1:
            raise ValueError(
                "`share` should be a share of the examples, from 0 to 1. "
                f"Received: {share!r}."
            )
        return round(share * len(self.ids))

    def to_dataframe(self):
        """A `pandas.DataFrame` by rank, from 1. Needs pandas.

        Columns: `train_id`, `is_mislabeled`, `recall`, `precision`.
        """
        pd = pandas()
        columns = {
            "train_id": self.ids,
            "is_mislabeled": self.is_mislabeled,
            "recall": self.recall[1:],
            "precision": self.precision,
        }
        ranks = np.arange(1, len(self.ids) + 1)
        return pd.DataFrame(columns, index=pd.Index(ranks, name="rank"))


def mislabel_detection(
    self_influence: SelfInfluence | Any, is_mislabeled: Any
) -> MislabelDetection:
    """Compares scores with the truth about the labels.

    Args:
        self_influence: result of `self_influence()` or
            `find_label_issues(...)`, or any scores: an array `[n]`, a dict by
            id, or a Series of pandas by its index; larger is more suspicious.
        is_mislabeled: booleans `[n]` in reading order, or a dict of booleans
            by id.

    Raises:
        ValueError: if the two do not fit, if a score is NaN, or if no label
            is wrong or all of them are.
    """
    known, scores = read_scores(self_influence)
    scores = scores.astype(np.float64)
    ids = np.arange(len(scores)) if known is None else known
    if getattr(self_influence, "is_ranked", False) and not isinstance(
        is_mislabeled, Mapping
    ):
        raise ValueError(
            "`is_mislabeled` should be a dict by id, since these scores are "
            f"ranked. Received: {type(is_mislabeled).__name__}. Pass "
            "`dict(enumerate(is_mislabeled))` where ids are positions."
        )
    if isinstance(is_mislabeled, Mapping):
        missing = [name for name in ids.tolist() if name not in is_mislabeled]
        if missing:
            raise ValueError(
                "`is_mislabeled` should hold every id that has a score. It "
                f"lacks {missing[:5]}."
            )
        is_mislabeled = [is_mislabeled[name] for name in ids.tolist()]
    wrong = np.asarray(is_mislabeled, dtype=bool)
    if scores.ndim != 1 or scores.shape != wrong.shape:
        raise ValueError(
            "There should be a score [n] and a boolean [n] for each example. "
            f"Received: scores of shape {scores.shape} and `is_mislabeled` of "
            f"shape {wrong.shape}."
        )
    if np.isnan(scores).any():
        raise ValueError(
            f"Scores are NaN at positions {np.flatnonzero(np.isnan(scores))}."
        )
    if wrong.all() or not wrong.any():
        raise ValueError(
            "`is_mislabeled` should be true for some examples and false for "
            f"others. Received: {wrong.sum()} of {len(wrong)} true."
        )
    order = np.argsort(-scores, kind="stable")
    return MislabelDetection(ids[order], wrong[order], _auc(scores, wrong))


def _auc(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Area under the ROC curve from ranks (Mann & Whitney 1947)."""
    ranks = scipy.stats.rankdata(scores)
    positives, negatives = wrong.sum(), (~wrong).sum()
    above = ranks[wrong].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def flip_labels(
    labels: Any,
    share: float,
    *,
    seed: int = 0,
    num_classes: int | None = None,
    scores: Any = None,
) -> np.ndarray:
    """Makes a share of the labels wrong; returns a changed copy.

    Args:
        labels: class indices `[n]`.
        share: share of the labels to change, above 0 and up to 1; they are
            drawn at random.
        seed: seed of the random choices.
        num_classes: number of classes; by default one more than the largest
            label.
        scores: None to draw wrong labels uniformly from the other classes; or
            a model's logits or probabilities `[n, classes]`, to take its
            likeliest wrong class, which is harder to detect.

    Raises:
        ValueError: if labels are no class indices, or if `share`,
            `num_classes` or `scores` does not fit them.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels):
        raise ValueError(
            "`labels` should be whole numbers [n]. Received: shape "
            f"{labels.shape}, dtype {labels.dtype}."
        )
    if not 0 < share <= 1:
        raise ValueError(
            f"`share` should be above 0 and at most 1. Received: {share!r}."
        )
    classes = int(labels.max()) + 1 if num_classes is None else num_classes
    if labels.min() < 0 or labels.max() >= classes or classes < 2:
        raise ValueError(
            f"Labels should be from 0 to {classes - 1}, of two classes or "
            f"more. Received: from {labels.min()} to {labels.max()}."
        )
    rng = np.random.default_rng(seed)
    positions = rng.choice(
        len(labels), round(share * len(labels)), replace=False
    )
    flipped = labels.copy()
    if scores is None:
        new_labels = labels[positions] + rng.integers(
            1, classes, len(positions)
        )
        flipped[positions] = new_labels % classes
        return flipped
    likely = np.array(scores, dtype=np.float64)
    if likely.shape != (len(labels), classes):
        raise ValueError(
            f"`scores` should have the shape {(len(labels), classes)}. "
            f"Received: {likely.shape}."
        )
    likely[np.arange(len(labels)), labels] = -np.inf
    flipped[positions] = likely[positions].argmax(axis=1)
    return flipped
