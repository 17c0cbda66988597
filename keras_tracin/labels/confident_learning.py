"""The joint distribution of given and right labels by confident learning.

An example whose given label is i counts for class j if its probability of j
is at least what examples labelled j have on average, and the largest such
(Northcutt et al. 2021, sec. 3.1). Counts off the diagonal are wrong labels.

Probabilities should be of a model that has not been trained on the example:
of one that has learnt the labels by heart no label seems wrong. Where classes
are hard to tell apart, so that average probabilities are low, many right labels
are counted as wrong.

Synopsis:

    learnt = confident_learning(labels, probabilities)
    learnt.joint                             # [classes, classes], sums to n
    learnt.num_issues
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ConfidentLearning:
    """Estimates by confident learning.

    Attributes:
        thresholds: `[classes]`, the mean probability of each class among the
            examples with its label; infinite for a class without any.
        counts: `[classes, classes]`, examples by their given label and the
            class that they count for: the confident joint.
        joint: the same, each row scaled to the number of examples with the
            label.
        off_diagonal: `[n]`, whether an example counts for another class than
            its label's.
    """

    thresholds: np.ndarray
    counts: np.ndarray
    joint: np.ndarray
    off_diagonal: np.ndarray

    @property
    def num_issues(self) -> int:
        """Estimated number of wrong labels."""
        return round(float(self.joint.sum() - self.joint.trace()))


def confident_learning(
    labels: np.ndarray, probabilities: np.ndarray
) -> ConfidentLearning:
    """Estimates how many labels of each class are wrong.

    Args:
        labels: class indices `[n]`.
        probabilities: `[n, classes]`.
    """
    classes = probabilities.shape[1]
    sizes = np.bincount(labels, minlength=classes)
    sums = np.bincount(
        labels, probabilities[np.arange(len(labels)), labels], classes
    )
    thresholds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    # A class of one example reaches its own mean, up to rounding.
    reached = probabilities >= thresholds - 1e-6
    counted = reached.any(axis=1)
    guesses = np.where(reached, probabilities, -1).argmax(axis=1)
    counts = np.zeros((classes, classes), int)
    np.add.at(counts, (labels[counted], guesses[counted]), 1)
    # One right label in each class, so that none is taken to be all wrong.
    diagonal = np.maximum(counts.diagonal(), 1)
    counts[np.arange(classes), np.arange(classes)] = diagonal
    joint = counts / counts.sum(axis=1, keepdims=True) * sizes[:, np.newaxis]
    return ConfidentLearning(
        thresholds, counts, joint, counted & (guesses != labels)
    )
