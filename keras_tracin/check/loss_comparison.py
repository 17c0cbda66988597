"""Compares the losses that `fit` reported with those of given data.

Synopsis:

    findings = list(loss_findings("train", comparisons, first_loss))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from keras_tracin.check.report import Finding

# The mean loss of an epoch lies between the losses at its two ends, or close to
# them. Data with twice that loss at both ends are probably other data.
_FACTOR = 2.0
_CERTAIN = 10.0  # no training ends so far from the loss that it reported
_ERRORS = 3.0  # standard errors of the sampled mean
_SMALL = 0.01  # of the first recorded loss: smaller differences are ignored


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The loss that `fit` reported for an epoch, and the loss of the data.

    Attributes:
        epoch: counted from 1.
        recorded: mean loss of the epoch, reported by `fit`.
        before: loss of the data at the weights before the epoch.
        after: loss of the data at the weights after it.
        error: standard error of `before` and `after`, which are estimated from
            a sample.
        inference: like `after`, but in inference mode; None for models without
            BatchNormalization, or before its moving averages have settled.
    """

    epoch: int
    recorded: float
    before: float
    after: float
    error: float
    inference: float | None = None

    @property
    def lower_bound(self) -> float:
        """Lower confidence bound of the smaller of `before` and `after`."""
        return min(self.before, self.after) - _ERRORS * self.error

    @property
    def upper_bound(self) -> float:
        """Upper confidence bound of the larger of `before` and `after`."""
        return max(self.before, self.after) + _ERRORS * self.error


def loss_findings(
    name: str, comparisons: Sequence[Comparison], first_loss: float
) -> Iterator[Finding]:
    """Says whether data seem to be what `fit` was trained on.

    Args:
        name: the argument that the data were passed as.
        comparisons: comparisons of several epochs; may be empty.
        first_loss: the loss that `fit` reported for the first epoch.
    """
    floor = _SMALL * abs(first_loss)
    verdicts = [_judge(comparison, floor) for comparison in comparisons]
    above = [c for c, v in zip(comparisons, verdicts, strict=True) if v > 0]
    if 2 * len(above) > len(comparisons):
        yield _other_data(name, above, comparisons)
    elif comparisons and 2 * verdicts.count(-1) > len(comparisons):
        yield _lower_loss(name, comparisons)
    elif comparisons:
        yield _agreement(name, comparisons)


def _judge(comparison: Comparison, floor: float) -> int:
    """1 if the loss of the data is above that of `fit`, -1 if below, else 0."""
    if _exceeds(comparison.lower_bound, comparison.recorded, _FACTOR, floor):
        return 1
    # A wider margin, since moving averages vary from step to step.
    if comparison.inference is not None and _exceeds(
        comparison.inference, comparison.recorded, _CERTAIN, floor
    ):
        return 1
    margin = (1 - 1 / _FACTOR) * abs(comparison.recorded) + floor
    return -1 if comparison.recorded - comparison.upper_bound > margin else 0


def _exceeds(
    value: float, recorded: float, factor: float, floor: float = 0.0
) -> bool:
    """Whether `value` exceeds `factor` times `recorded` by `floor`.

    For a negative `recorded`, the distance is that of its absolute value.
    """
    return value - recorded > (factor - 1) * abs(recorded) + floor


def _describe(comparison: Comparison) -> str:
    in_training = _exceeds(comparison.lower_bound, comparison.recorded, _FACTOR)
    if comparison.inference is not None and not in_training:
        return (
            f"in epoch {comparison.epoch} `fit` reported "
            f"{comparison.recorded:.4g}, and the data have "
            f"{comparison.inference:.4g} after it, in inference mode"
        )
    return (
        f"in epoch {comparison.epoch} `fit` reported "
        f"{comparison.recorded:.4g}, and the data have {comparison.before:.4g} "
        f"before it and {comparison.after:.4g} after it"
    )


def _other_data(
    name: str, above: Sequence[Comparison], comparisons: Sequence[Comparison]
) -> Finding:
    certain = sum(_exceeds(c.lower_bound, c.recorded, _CERTAIN) for c in above)
    severity = "error" if 2 * certain > len(comparisons) else "warning"
    return Finding(
        severity,
        name,
        f"`{name}` does not seem to be what `fit` was trained on: "
        f"{_describe(above[-1])} (so in {len(above)} of {len(comparisons)} "
        "epochs). Look for scaling or preprocessing that is left out, classes "
        "in another order, another data set, class or sample weights.",
    )


def _lower_loss(name: str, comparisons: Sequence[Comparison]) -> Finding:
    return Finding(
        "note",
        name,
        f"The training had more loss than `{name}` has: "
        f"{_describe(comparisons[-1])}. Unless examples were augmented, look "
        "for class or sample weights and for changed labels.",
    )


def _agreement(name: str, comparisons: Sequence[Comparison]) -> Finding:
    return Finding(
        "note",
        name,
        f"`{name}` agrees with the losses on record: "
        f"{_describe(comparisons[-1])}.",
    )
