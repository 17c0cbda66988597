"""Estimates of how many labels are wrong, and what they rest on.

Confident learning is right of a model that is seldom wrong: what it counts
beside wrong labels is the model's own errors, and they make up for the wrong
labels that it has learnt by heart. Of others it counts several times too many,
and the most confident predictions alone say more. So "auto" takes the first
where at most a tenth of the predictions is wrong, the second from three tenths
on, and a mean between. How many are wrong follows from the second: whatever
disagrees with the label beyond the share of wrong labels. Out of fold nothing
is learnt by heart that errors could make up for, and "auto" is the second.

A model may know little after two epochs. Where most of its predictions disagree
with the labels, the number is too high, and too low by the mean over all
checkpoints, when wrong labels have been learnt by heart: it is the geometric
mean of both. Where more labels seem wrong than disagree at all, which cannot
be, it is the second alone.

Synopsis:

    estimate = estimate_number(dynamics, "auto")
    estimate.number, estimate.reasons
"""

from __future__ import annotations

import dataclasses
import numbers

import numpy as np

from keras_tracin.labels.confident_learning import confident_learning
from keras_tracin.labels.dynamics import EARLY, TrainingDynamics
from keras_tracin.labels.share_of_wrong import share_of_wrong_labels

NUMBERS = ("auto", "confident_examples", "confident_learning")
_FEW, _MANY = 0.1, 0.3  # shares of predictions that are wrong
_UNSURE = 0.5  # share of predictions that disagree with the labels
_OUTLIER = 3.5  # robust standard deviations (Iglewicz & Hoaglin 1993)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """An estimated number of wrong labels.

    Attributes:
        number: the number; None where there is no estimate.
        reasons: what it rests on, in words.
    """

    number: int | None
    reasons: tuple[str, ...]


def estimate_number(
    dynamics: TrainingDynamics, number: str | int, out_of_fold: bool = False
) -> Estimate:
    """Estimates how many labels are wrong.

    Args:
        dynamics: the dynamics.
        number: a name in `NUMBERS`, or the number itself, where it is known.
        out_of_fold: whether they are by models that were not trained on these
            examples.

    Raises:
        ValueError: for anything else.
    """
    check_number(number)
    if not isinstance(number, str):
        if number > len(dynamics):
            raise _no_number(number)
        return Estimate(int(number), ("the number was given",))
    if dynamics.kind == "numbers":
        outliers = int((dynamics.robust_residual > _OUTLIER).sum())
        why = f"the number is that of residuals above {_OUTLIER} robust "
        return Estimate(outliers, (f"{why}standard deviations",))
    given, p = dynamics.given_labels, dynamics.early_probabilities
    if given is None or p is None:
        why = "the number needs probabilities of a label for each example"
        return Estimate(None, (why,))
    labels_per_example = given.shape[1] if given.ndim == 2 else 1
    if number == "auto" and out_of_fold:
        number = "confident_examples"
    at = "out of fold" if out_of_fold else _at_first(dynamics)
    share, disagreeing, what = _share(number, given, p)
    doubts = _doubts(dynamics, out_of_fold)
    mean = dynamics.mean_probabilities
    has_more = len(dynamics.epochs) > EARLY and not out_of_fold
    # No more labels can be wrong than disagree.
    is_too_many = share > disagreeing > _FEW
    if (is_too_many or disagreeing > _UNSURE) and has_more and mean is not None:
        early, early_disagreeing = share, disagreeing
        share, disagreeing, what = _share(number, given, mean)
        at = f"on the mean of all checkpoints, since {at} little was learnt"
        if not is_too_many:
            share = float(np.sqrt(share * early))
            at = f"{at}, and between that and theirs"
            doubts.append(
                f"{early_disagreeing:.0%} of the first predictions disagree "
                "with the labels, so it is rough"
            )
    if disagreeing > _UNSURE or share > disagreeing > _FEW:
        doubts.append(
            f"{disagreeing:.0%} of these predictions disagree with the labels, "
            "so it may be several times too high"
        )
    share = 1 - (1 - share) ** labels_per_example  # of one or more of them
    return Estimate(
        round(share * len(dynamics)),
        (f"the number by {what} {at}", *doubts),
    )


def check_number(number: str | int) -> None:
    """Refuses what is neither a name in `NUMBERS` nor a number from 0.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(number, numbers.Integral) and not isinstance(number, bool):
        is_number = int(number) >= 0
    else:
        is_number = isinstance(number, str) and number in NUMBERS
    if not is_number:
        raise _no_number(number)


def _at_first(dynamics: TrainingDynamics) -> str:
    """At which checkpoints the early probabilities are."""
    if not dynamics.epochs.any():
        return "at the present weights"
    epochs = dynamics.epochs[:EARLY].tolist()
    return f"at epoch{'s'[: len(epochs) > 1]} {' and '.join(map(str, epochs))}"


def _share(
    number: str, given: np.ndarray, p: np.ndarray
) -> tuple[float, float, str]:
    """The share of wrong labels, and what it is estimated by.

    Args:
        number: a name in `NUMBERS`.
        given: class indices `[n]`, or labels `[n, labels]` of 0 and 1.
        p: probabilities `[n, classes]`, or `[n, labels]`.

    Returns:
        The share, that of predictions which disagree with the label, and the
        rule in words.
    """
    if given.ndim == 2:  # each is one of two classes
        p = np.stack([1 - p, p], axis=-1).reshape(-1, 2)
        given = given.reshape(-1)
    disagreement = float(np.mean(p.argmax(axis=1) != given))
    learnt = confident_learning(given, p).num_issues / len(given)
    if number == "confident_learning":
        return learnt, disagreement, "confident learning"
    share = share_of_wrong_labels(given, p)
    confident = "disagreement among the most confident predictions"
    if number == "confident_examples":
        return share, disagreement, confident
    wrong = max(0.0, (disagreement - share) / (1 - share))
    weight = min(1.0, max(0.0, (_MANY - wrong) / (_MANY - _FEW)))
    seen = f"since about {wrong:.0%} of the predictions are wrong"
    if weight == 1:
        return learnt, disagreement, f"confident learning, {seen},"
    if weight == 0:
        return share, disagreement, f"{confident}, {seen},"
    both = weight * learnt + (1 - weight) * share
    what = f"confident learning and {confident}, {seen},"
    return both, disagreement, what


def _doubts(dynamics: TrainingDynamics, out_of_fold: bool) -> list[str]:
    """What makes an estimate of the number doubtful."""
    doubts = []
    if dynamics.epochs[:EARLY].tolist() != [1, 2] and not out_of_fold:
        doubts.append(
            "the first two epochs have not a checkpoint each, so wrong labels "
            "that were learnt by heart before are missing from it"
        )
    given = dynamics.given_labels
    if dynamics.kind == "classes" and given is not None:
        alone = np.flatnonzero(np.bincount(given) == 1).tolist()
        if alone:
            doubts.append(
                f"no other example has the label of classes {alone[:5]}, so "
                "nothing tells whether it is right"
            )
    return doubts


def _no_number(number: object) -> ValueError:
    return ValueError(
        f"`number` should be one of {list(NUMBERS)}, or the number of wrong "
        "labels where it is known, up to that of the examples. Received: "
        f"{number!r}."
    )
