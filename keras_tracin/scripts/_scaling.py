"""How input values were scaled for training, and what the run tells of it.

Pixels are from 0 to 255 in files, and a model may have been trained on them as
they are, from 0 to 1, or from -1 to 1. Nothing in the model says which; the
losses that the run recorded do, since data of another scale have others.

Synopsis:

    said = Scaling(255.0)
    said.apply(images)                     # images / 255, in float32
    record = Record(model, train, run)
    record.compare(said.apply)             # Evidence, or None
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.check.loss_comparison import Comparison, loss_findings
from keras_tracin.check.report import Finding
from keras_tracin.check.training_loss import (
    SAMPLE_SIZE,
    TrainingLoss,
    reports_compiled_loss,
    sample_examples,
)
from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.examples import open_examples
from keras_tracin.data.held import HeldExamples
from keras_tracin.runs import TrainingRun

_SEED = 0
_CLOSE, _FAR = 0.1, 0.25  # shares of the recorded loss
_SMALL = 0.01  # of the first recorded loss: smaller differences are ignored


@dataclasses.dataclass(frozen=True)
class Scaling:
    """What was done to input values before training.

    Attributes:
        scale: what they were divided by.
        offset: what was added then.
    """

    scale: float = 1.0
    offset: float = 0.0

    def apply(self, x: Any) -> Any:
        """The values as the model was given them."""
        if self == Scaling():
            return x
        return tf.cast(x, tf.float32) / self.scale + self.offset

    @property
    def flags(self) -> str:
        """The flags that say the same."""
        offset = f" --offset={self.offset:g}" if self.offset else ""
        return f"--scale={self.scale:g}{offset}"


# What people do to pixels.
OF_PIXELS = (Scaling(), Scaling(255.0), Scaling(127.5, -1.0))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What the losses that a run recorded say of data.

    Attributes:
        finding: in words, as `kt.check` says it.
        gap: distance of the recorded loss from those of the data before and
            after an epoch, as a share of it; 0 between them.
        ratio: logarithm of the recorded loss over the geometric mean of those
            two, without its sign; 0 where a loss is below zero. Both are
            medians over epochs.
        recorded: the recorded loss of the last epoch that was compared.
    """

    finding: Finding
    gap: float
    ratio: float
    recorded: float

    @property
    def words(self) -> str:
        """What was compared, for messages."""
        told = self.finding.message.replace("`train`", "--data")
        if self.agrees or self.finding.severity != "note":
            return told
        _, _, losses = told.partition(": ")
        return f"--data may not be what `fit` was trained on: {losses}"

    @property
    def agrees(self) -> bool:
        """Whether the losses may well be those of the run."""
        is_near = self.gap <= _CLOSE and self.ratio <= math.log(3)
        return self.finding.severity == "note" and is_near

    @property
    def differs(self) -> bool:
        """Whether the losses are others than those of the run."""
        return self.finding.severity != "note" or self.gap >= _FAR


def choose(evidence: Mapping[Scaling, Evidence]) -> Scaling | None:
    """The scale of which alone the losses are those of the run, if any.

    A wrong scale may have losses far above the recorded one before an epoch
    and far below it after, so that it is between them.

    Args:
        evidence: what the losses say of each scale.
    """
    good = [
        scaling
        for scaling, found in evidence.items()
        if found.agrees and found.ratio <= math.log(1.4)
    ]
    bad = [
        scaling
        for scaling, found in evidence.items()
        if found.differs or found.ratio >= math.log(2)
    ]
    is_told = len(good) == 1 and len(bad) == len(evidence) - 1
    return good[0] if is_told else None


class Record:
    """The losses that a run recorded, beside those of data.

    Args:
        model: the model. Its weights are restored.
        data: the training data, in any form but for their scale.
        run: the run.
    """

    def __init__(self, model: keras.Model, data: Any, run: TrainingRun):
        self._model, self._run = model, run
        examples = open_examples(data)
        rng = np.random.default_rng(_SEED)
        self._sample = sample_examples(examples, SAMPLE_SIZE, rng)
        self._size = examples.size

    def compare(self, change: Callable[[Any], Any]) -> Evidence | None:
        """What the recorded losses say of the data; None if nothing.

        Args:
            change: a function of inputs, which makes of them what the model
                was given.
        """
        recorded = self._run.history.get("loss")
        if not recorded or not reports_compiled_loss(self._model):
            return None
        sample = dataclasses.replace(self._sample, x=change(self._sample.x))
        losses = TrainingLoss(self._model, _Sample(sample, self._size))
        comparisons = losses.comparisons(self._run)
        finding = next(loss_findings("train", comparisons, recorded[0]), None)
        if finding is None:
            return None
        floor = _SMALL * abs(recorded[0])
        gaps = [_gap(comparison, floor) for comparison in comparisons]
        ratios = list(map(_ratio, comparisons))
        return Evidence(
            finding,
            float(np.median(gaps)),
            float(np.median(ratios)),
            comparisons[-1].recorded,
        )


def _ratio(comparison: Comparison) -> float:
    """How far the recorded loss is from the middle of those of the data."""
    losses = comparison.recorded, comparison.before, comparison.after
    if min(losses) < 0:
        return 0.0
    recorded, before, after = (math.log(max(loss, 1e-9)) for loss in losses)
    return abs(recorded - (before + after) / 2)


def _gap(comparison: Comparison, floor: float) -> float:
    """How far the recorded loss is from those of the data, as its share."""
    recorded = comparison.recorded
    outside = max(
        comparison.lower_bound - recorded, recorded - comparison.upper_bound
    )
    return max(0.0, outside - floor) / max(abs(recorded), 1e-9)


class _Sample(Examples):
    """Some examples in the place of all."""

    bytes_read_per_example = 0
    carries_ids = True

    def __init__(self, sample: Batch, size: int | None):
        self.name, self.size, self._sample = "train", size, sample

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """As `Examples.batches`."""
        batch = self._sample
        held = HeldExamples(
            (batch.x, batch.y, batch.sample_weight), self.name, batch.ids
        )
        return held.batches(batch_size)
