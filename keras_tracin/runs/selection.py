"""Selecting checkpoints where training was learning.

Pruthi et al. 2020, section D, advises checkpoints where the loss falls, more
of them where it falls faster; none in the fluctuation at the beginning, and
none after convergence, where gradients are small and say little.

Synopsis:

    run = select_checkpoints(TrainingRun("runs/digits"), 5)  # prints why
    TracIn(model, train, run)

    TracInCheckpoint("runs/digits", epochs=WhenLossDrops(0.1))
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping

import numpy as np

from keras_tracin.runs.run import TrainingRun


def select_checkpoints(
    run: TrainingRun,
    count: int,
    *,
    metric: str = "loss",
    converged: float = 0.02,
    verbose: int = 1,
) -> TrainingRun:
    """Selects checkpoints that cover the fall of the loss (section D).

    Checkpoints before the highest loss are the initial fluctuation. From
    there, the curve is the lowest loss so far, and training counts as
    converged once all but `converged` of its whole fall is done. Up to then,
    progress is the mean of two shares: of the fall that is done, and of the
    steps. The chosen checkpoints cut it into `count` parts as equal as can be:
    there are more where the loss falls faster, and some where it falls
    steadily for long. By the fall alone, most would stand in the first epochs,
    and agree less with TracInIdeal than ones evenly spaced (benchmarks). Where
    the falling part has too few, the earliest ones after it make up the number.

    Args:
        run: the training run, with the metric logged at each checkpoint.
        count: the number of checkpoints to keep.
        metric: the name of the loss that falls; `"val_loss"` for example.
        converged: the share of the fall that no longer counts, from 0 to 1.
        verbose: 0 for silence; else why each was kept or left is printed.

    Returns:
        The run of the selected checkpoints; the intervals of their learning
        rates still add up.

    Raises:
        TypeError: if `count` is not a whole number.
        ValueError: if `count` is below 1 or above the number of checkpoints
            from the highest loss on, or if a checkpoint has no finite value
            of the metric.
    """
    if not 0 <= converged < 1:
        raise ValueError(
            f"`converged` should be from 0 to below 1. Received: {converged!r}."
        )
    losses = _losses(run, metric)
    start = int(np.argmax(losses)) if len(losses) else 0
    count = operator.index(count)
    if not 1 <= count <= len(losses) - start:
        raise ValueError(
            f"`count` should be from 1 to {len(losses) - start}, the "
            f"checkpoints from the highest '{metric}' on. Received: {count}, "
            f"for a run of {len(losses)} checkpoints."
        )
    falls = losses[start] - np.minimum.accumulate(losses[start:])
    end = int(np.argmax(falls >= (1 - converged) * falls[-1]))
    span = slice(0, max(end + 1, count))
    progress = _shares(falls[span]) + _shares(_elapsed(run[start:][span]))
    kept = [start + place for place in _places(progress, count)]
    if verbose:
        print(_explanation(run, metric, losses, start, start + end, kept))
    return run.select(kept)


def _losses(run: TrainingRun, metric: str) -> np.ndarray:
    """The metric at each checkpoint, `[len(run)]`."""
    of_epoch: Mapping[int, float] = {}
    # A metric that came later in training has fewer values than epochs.
    if len(run.history.get(metric, ())) == len(run.epochs) > 0:
        of_epoch = dict(zip(run.epochs, run.history[metric], strict=True))
    losses = np.array(
        [
            checkpoint.logs.get(
                metric, of_epoch.get(checkpoint.epoch, math.nan)
            )
            for checkpoint in run
        ]
    )
    if not np.isfinite(losses).all():
        bad = run[int(np.argmin(np.isfinite(losses)))]
        raise ValueError(
            f"The checkpoint of epoch {bad.epoch} has no finite '{metric}'. "
            f"Received: logs {dict(bad.logs)}. Pass as `metric=` one that "
            "was logged, or choose checkpoints by `run.select([...])`."
        )
    return losses


def _elapsed(run: TrainingRun) -> np.ndarray:
    """Steps, or epochs if these are unknown, up to each checkpoint."""
    return np.array([float(c.epoch if c.step is None else c.step) for c in run])


def _shares(values: np.ndarray) -> np.ndarray:
    """Values scaled to go from 0 to 1, or all 0 where nothing changes."""
    whole = values[-1] - values[0]
    return (values - values[0]) / whole if whole else np.zeros_like(values)


def _places(progress: np.ndarray, count: int) -> list[int]:
    """The first places where progress has reached each part of `count`."""
    end = len(progress) - 1
    places: list[int] = []
    for part in range(1, count + 1):
        reached = progress[end] * part / count * (1 - 1e-9)
        lowest = places[-1] + 1 if places else 0
        place = max(int(np.argmax(progress >= reached)), lowest)
        places.append(min(place, end - (count - part)))
    return places


def _explanation(run, metric, losses, start, end, kept) -> str:
    """A line for each checkpoint: its loss, kept or left, and why."""
    lines = [f"select_checkpoints: {len(kept)} of {len(run)}, by '{metric}'"]
    for position, checkpoint in enumerate(run):
        if position < start:
            reason = "before the highest loss: initial fluctuation"
        elif position > end:
            reason = "after convergence"
        else:
            reason = "the loss falls here"
        if position in kept:
            word = "kept"
            if position > end:
                reason += ", but too few before it"
        else:
            word = "left"
            if start <= position <= end:
                reason = (
                    "too little progress since the one kept before"
                    if position > kept[0]
                    else "too little progress by then"
                )
        lines.append(
            f"  epoch {checkpoint.epoch:>4}  {metric} "
            f"{losses[position]:<10.4g} {word}: {reason}"
        )
    return "\n".join(lines)


class WhenLossDrops:
    """Saves an epoch where the loss fell enough since the last one saved.

    The first epoch is saved, then each whose loss is below `1 - fraction` of
    that at the last save: many while the loss falls fast, few later, none
    after convergence (section D). A training that starts again at an earlier
    epoch starts afresh.

    Example:
    ```python
    callback = kt.TracInCheckpoint(
        "runs/digits", epochs=kt.WhenLossDrops(0.1)
    )
    ```

    Args:
        fraction: the share of the loss by which it has to fall, between 0
            and 1.
        metric: the name of the loss in the logs.

    Raises:
        ValueError: if `fraction` is out of range; or, when called, if the
            metric is not logged.
    """

    def __init__(self, fraction: float, metric: str = "loss"):
        if not 0 < fraction < 1:
            raise ValueError(
                f"`fraction` should be between 0 and 1. Received: {fraction!r}."
            )
        self._fraction, self._metric = fraction, metric
        self._epoch = 0
        self._saved = math.inf

    def __call__(self, epoch: int, logs: Mapping[str, float]) -> bool:
        """Whether to save after this epoch, counted from 1."""
        if self._metric not in logs:
            raise ValueError(
                f"WhenLossDrops looks at '{self._metric}', which is not "
                f"logged. Received logs of {sorted(logs)}; name one of them."
            )
        if epoch <= self._epoch:
            self._saved = math.inf
        self._epoch = epoch
        loss = float(logs[self._metric])
        if not math.isfinite(loss) or loss >= self._saved * (
            1 - self._fraction
        ):
            return False
        self._saved = loss
        return True
