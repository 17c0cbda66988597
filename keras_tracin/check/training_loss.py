"""Whether data are those that a run was trained on: its loss tells.

`fit` reports the mean loss of an epoch's batches, each before the step on it.
The same data, in training mode and with the weights from before and after the
epoch, have about that loss or one on either side of it. Data that were not
scaled, have other labels, or come from elsewhere have more of it at both ends,
once the model has learnt something.

BatchNormalization in training mode undoes what is wrong with the scale of
data, and in inference mode, in which they are scored, it does not: models that
have it are looked at in both.

Synopsis:

    loss = TrainingLoss(model, examples, class_weight=None)
    loss.findings(run)        # Iterator[Finding]
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.check.report import Finding
from keras_tracin.data.batches import Batch, Examples, join
from keras_tracin.losses.per_example import batch_shares
from keras_tracin.models.compiled import compiled_loss
from keras_tracin.runs import Checkpoint, TrainingRun, run_weights

_SAMPLED = 1024  # examples
_MOST_READ = 10_000  # of a stream, which is read from its beginning
_READ = 256  # examples at a time
_EPOCHS = 5  # of the later half, where a model tells its data from others
_BATCH = 32  # where nobody knows how large those of the training were
# The mean over an epoch lies between what holds at its ends, or not far from
# it: twice as much at both is another thing.
_FACTOR = 2.0
_SURE = 10.0  # no training ends so far from its own record
_ERRORS = 3.0  # standard errors of the sampled mean
_SMALL = 0.01  # of the first loss on record: too little to tell


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The loss on record of an epoch, and that of the data at its ends.

    Attributes:
        epoch: counted from 1.
        recorded: by `fit`.
        before: of the data at the weights before the epoch.
        after: at those after it.
        error: the standard error of these two, which are of a sample.
        inference: as `after`, in inference mode; None where that says no more,
            or where BatchNormalization's averages are not yet those of data.
    """

    epoch: int
    recorded: float
    before: float
    after: float
    error: float
    inference: float | None = None

    @property
    def least(self) -> float:
        """The lower of the two, less what chance may have added."""
        return min(self.before, self.after) - _ERRORS * self.error

    @property
    def most(self) -> float:
        """The higher of the two, and what chance may have taken from it."""
        return max(self.before, self.after) + _ERRORS * self.error


class TrainingLoss:
    """The loss that Keras trains on, of given data at recorded weights.

    Args:
        model: the built and compiled model.
        examples: the opened data.
        class_weight: the `class_weight` given to `fit`.
        most: how many examples to read; None for all.
        seed: of the sample.

    Raises:
        ValueError: if the loss has no value for each example.
    """

    def __init__(
        self,
        model: keras.Model,
        examples: Examples,
        class_weight: Mapping[int, float] | None = None,
        most: int | None = _MOST_READ,
        seed: int = 0,
    ):
        self._model, self._examples = model, examples
        shares = batch_shares(model, None, class_weight)
        self._most, self._rng = most, np.random.default_rng(seed)

        def loss(data, training):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
            y_pred = model(x, training=training)
            value = tf.reduce_sum(shares(y, y_pred, weight))
            extra = [tf.cast(one, value.dtype) for one in model.losses]
            return tf.add_n([value, *extra])

        self._loss = tf.function(loss, reduce_retracing=True)

    def findings(self, run: TrainingRun) -> Iterator[Finding]:
        """What the record says of the data, if anything.

        Args:
            run: the run; the model gets its weights back.
        """
        if not says_the_loss(self._model) or not run.history.get("loss"):
            return
        comparisons = self.comparisons(run)
        floor = _SMALL * abs(run.history["loss"][0])
        judged = [_judge(one, floor) for one in comparisons]
        apart = [
            one
            for one, what in zip(comparisons, judged, strict=True)
            if what > 0
        ]
        if 2 * len(apart) > len(comparisons):
            yield _other_data(self._examples.name, apart, comparisons)
        elif comparisons and 2 * judged.count(-1) > len(comparisons):
            yield _easier(self._examples.name, comparisons)
        elif comparisons:
            yield _agreeing(self._examples.name, comparisons)

    def comparisons(self, run: TrainingRun) -> list[Comparison]:
        """Of some epochs of the later half, at the weights kept around them.

        Args:
            run: the run.
        """
        losses = dict(zip(run.epochs, run.history["loss"], strict=False))
        spans = {
            epoch: span
            for epoch in losses
            if (span := _around(run, epoch)) is not None
            and math.isfinite(losses[epoch])
        }
        later = list(spans)[len(spans) // 2 :]
        places = np.linspace(0, len(later) - 1, min(_EPOCHS, len(later)))
        wanted = [later[round(place)] for place in places]
        if not wanted:
            return []
        batches = self._sample(_batch_size(self._model, run, self._examples))
        known: dict[Any, tuple[float, float]] = {}
        comparisons = []
        settled = _steps_to_settle(self._model)
        with run_weights(self._model) as load:
            for epoch in wanted:
                for weights in spans[epoch]:
                    if weights not in known:
                        load(weights)
                        known[weights] = self._mean(batches)
                inference = None
                end = spans[epoch][1]
                is_settled = (
                    settled is not None
                    and isinstance(end, Checkpoint)
                    and (end.step or 0) >= settled
                )
                if is_settled:
                    load(end)
                    inference, _ = self._mean(batches, training=False)
                (before, one), (after, other) = (
                    known[weights] for weights in spans[epoch]
                )
                comparisons.append(
                    Comparison(
                        *(epoch, losses[epoch], before, after),
                        *(max(one, other), inference),
                    )
                )
        return [
            one
            for one in comparisons
            if math.isfinite(one.before) and math.isfinite(one.after)
        ]

    def _sample(self, batch_size: int) -> list[Batch]:
        """Some of the examples in batches of the size of the training's."""
        examples = self._examples
        in_memory = examples.bytes_read_per_example == 0
        most = max(_SAMPLED, batch_size)
        sample: list[Batch] = []
        keys, read = np.zeros(0), 0
        for batch in examples.batches(_READ):
            # Those of the lowest random keys are a sample of what was read.
            drawn = self._rng.random(len(batch))
            keys = np.concatenate([keys, drawn])
            kept = np.argsort(keys)[:most]
            sample, keys = [join([*sample, batch]).take(kept)], keys[kept]
            read += len(batch)
            if self._most and read >= self._most and not in_memory:
                break
        count = len(keys)
        size = min(batch_size, count)
        return [
            sample[0].take(np.arange(start, start + size))
            for start in range(0, count - size + 1, size)
        ]

    def _mean(
        self, batches: list[Batch], training: bool = True
    ) -> tuple[float, float]:
        """The mean over batches, and its standard error."""
        try:
            values = [
                float(self._loss(batch.data, training)) for batch in batches
            ]
        finally:
            self._model._clear_losses()  # those of the trace
        if len(values) < 2:
            return values[0], 0.0
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        # Of a sample that is all of the data, the mean has none.
        whole = self._examples.size or math.inf
        left = max(0.0, 1 - sum(map(len, batches)) / whole)
        return float(np.mean(values)), float(error) * math.sqrt(left)


def says_the_loss(model: keras.Model) -> bool:
    """Whether the "loss" that `fit` reports is that of the compiled loss."""
    kind: Any = type(model)
    whole = model.distribute_strategy.num_replicas_in_sync == 1
    return (
        whole
        and compiled_loss(model) is not None
        and kind.train_step is keras.Model.train_step
        and kind.compute_loss is keras.Model.compute_loss
    )


def _steps_to_settle(model: keras.Model) -> int | None:
    """After how many steps averages of data make up 99 %; None without any."""
    momenta = [
        layer.momentum
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and layer.trainable
    ]
    if not momenta:
        return None
    slowest = min(max(*momenta, 0.0), 0.9999)
    return 1 if not slowest else math.ceil(math.log(0.01) / math.log(slowest))


def _around(
    run: TrainingRun, epoch: int
) -> tuple[Checkpoint | Path, Checkpoint | Path] | None:
    """The weights kept last before an epoch, and first at its end or later."""
    before: list[Checkpoint | Path] = [one for one in run if one.epoch < epoch]
    if run.initial is not None:
        before.insert(0, run.initial)
    within = [one for one in run if one.epoch == epoch]
    after = within[-1:] + [one for one in run if one.epoch > epoch][:1]
    if not before or not after:
        return None
    return before[-1], after[0]


def _batch_size(
    model: keras.Model, run: TrainingRun, examples: Examples
) -> int:
    """About how many examples a batch of the training had."""
    epochs, steps = run[-1].epoch, run[-1].step
    if not examples.size or not steps:
        return min(_BATCH, examples.size or _BATCH)
    every = getattr(model.optimizer, "gradient_accumulation_steps", None) or 1
    batches = max(1, round(steps * every / epochs))
    return max(1, min(examples.size, math.ceil(examples.size / batches)))


def _judge(one: Comparison, floor: float) -> int:
    """1 where the data have more loss than the record, -1 less, or 0."""
    if _exceeds(one.least, one.recorded, _FACTOR, floor):
        return 1
    # With more room: averages over batches vary from step to step.
    if one.inference is not None and _exceeds(
        one.inference, one.recorded, _SURE, floor
    ):
        return 1
    missing = (1 - 1 / _FACTOR) * abs(one.recorded) + floor
    return -1 if one.recorded - one.most > missing else 0


def _exceeds(
    value: float, recorded: float, factor: float, floor: float = 0.0
) -> bool:
    """Whether a loss is so many times another; below zero, as far above it."""
    return value - recorded > (factor - 1) * abs(recorded) + floor


def _described(one: Comparison) -> str:
    in_training = _exceeds(one.least, one.recorded, _FACTOR)
    if one.inference is not None and not in_training:
        return (
            f"in epoch {one.epoch} `fit` had a loss of {one.recorded:.4g}, "
            f"and these data have {one.inference:.4g} with the weights after "
            "it, in inference mode"
        )
    return (
        f"in epoch {one.epoch} `fit` had a loss of {one.recorded:.4g}, and "
        f"these data have {one.before:.4g} with the weights before it and "
        f"{one.after:.4g} with those after it"
    )


def _other_data(
    name: str, apart: list[Comparison], comparisons: list[Comparison]
) -> Finding:
    sure = sum(_exceeds(one.least, one.recorded, _SURE) for one in apart)
    severity = "error" if 2 * sure > len(comparisons) else "warning"
    return Finding(
        severity,
        name,
        f"`{name}` does not seem to be what `fit` was trained on: "
        f"{_described(apart[-1])}. Expected about the same; "
        f"{len(apart)} of {len(comparisons)} epochs that were compared are "
        "like this. Look for scaling or preprocessing that is left out, for "
        "classes in another order, for another data set, and for class or "
        "sample weights that `fit` was given.",
    )


def _easier(name: str, comparisons: list[Comparison]) -> Finding:
    return Finding(
        "note",
        name,
        f"The training had more loss than `{name}` has: "
        f"{_described(comparisons[-1])}. That is to be expected where "
        "examples were augmented; if not, look for class or sample weights "
        "that `fit` was given, and for labels that were changed.",
    )


def _agreeing(name: str, comparisons: list[Comparison]) -> Finding:
    return Finding(
        "note",
        name,
        f"`{name}` agrees with the losses on record: "
        f"{_described(comparisons[-1])}.",
    )
