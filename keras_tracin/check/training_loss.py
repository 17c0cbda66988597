"""Checks by the recorded losses that data are those a run was trained on.

`fit` reports the mean loss of an epoch's batches, each taken before the step on
it. The same data, in training mode and with the weights from before and after
the epoch, have losses close to it or on either side of it. Data that were not
scaled, have other labels, or come from elsewhere have a higher loss at both
ends, once the model has learnt something.

BatchNormalization undoes a wrong scale of the data in training mode, but not in
inference mode, which scores use: models that have it are checked in both.

Synopsis:

    loss = TrainingLoss(model, examples, class_weight=None)
    loss.findings(run)        # Iterator[Finding]
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.check.loss_comparison import Comparison, loss_findings
from keras_tracin.check.report import Finding
from keras_tracin.data.batches import Batch, Examples, join
from keras_tracin.losses.per_example import batch_shares
from keras_tracin.models.compiled import compiled_loss
from keras_tracin.runs import Checkpoint, TrainingRun, run_weights

SAMPLE_SIZE = 1024  # examples
_MOST_READ = 10_000  # examples of a stream, from its beginning
_READ_SIZE = 256  # examples at a time
# Number of epochs to compare, from the later half: by then the model fits its
# own data better than other data.
_EPOCHS = 5
_BATCH_SIZE = 32  # if the batch size of the training is unknown


class TrainingLoss:
    """The training loss of given data at the recorded weights of a run.

    Args:
        model: the built and compiled model.
        examples: the opened data.
        class_weight: the `class_weight` given to `fit`.
        max_examples: number of examples to read; None for all.
        seed: seed of the sample of examples.

    Raises:
        ValueError: if the loss has no value for each example.
    """

    def __init__(
        self,
        model: keras.Model,
        examples: Examples,
        class_weight: Mapping[int, float] | None = None,
        max_examples: int | None = _MOST_READ,
        seed: int = 0,
    ):
        self._model, self._examples = model, examples
        shares = batch_shares(model, None, class_weight)
        self._max_examples = max_examples
        self._rng = np.random.default_rng(seed)

        def loss(data, training):
            x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
            y_pred = model(x, training=training)
            value = tf.reduce_sum(shares(y, y_pred, weight))
            extra = [tf.cast(extra, value.dtype) for extra in model.losses]
            return tf.add_n([value, *extra])

        self._loss = tf.function(loss, reduce_retracing=True)

    def findings(self, run: TrainingRun) -> Iterator[Finding]:
        """Compares the data with the losses that the run recorded.

        Args:
            run: the run. The weights of the model are restored.
        """
        losses = run.history.get("loss")
        if not losses or not reports_compiled_loss(self._model):
            return
        comparisons = self.comparisons(run)
        yield from loss_findings(self._examples.name, comparisons, losses[0])

    def comparisons(self, run: TrainingRun) -> list[Comparison]:
        """Compares several epochs of the later half of the training.

        Only epochs with recorded weights before and after them are compared.

        Args:
            run: the run. The weights of the model are restored.
        """
        losses = dict(zip(run.epochs, run.history["loss"], strict=False))
        spans = {
            epoch: span
            for epoch in losses
            if (span := _weights_around(run, epoch)) is not None
            and math.isfinite(losses[epoch])
        }
        later = list(spans)[len(spans) // 2 :]
        places = np.linspace(0, len(later) - 1, min(_EPOCHS, len(later)))
        epochs = [later[round(place)] for place in places]
        if not epochs:
            return []
        batches = self._sample(_batch_size(self._model, run, self._examples))
        means: dict[Any, tuple[float, float]] = {}
        comparisons = []
        steps_to_settle = _steps_to_settle(self._model)
        with run_weights(self._model) as load:
            for epoch in epochs:
                for weights in spans[epoch]:
                    if weights not in means:
                        load(weights)
                        means[weights] = self._mean(batches)
                inference = None
                end = spans[epoch][1]
                is_settled = (
                    steps_to_settle is not None
                    and isinstance(end, Checkpoint)
                    and (end.step or 0) >= steps_to_settle
                )
                if is_settled:
                    load(end)
                    inference, _ = self._mean(batches, training=False)
                (before, error_before), (after, error_after) = (
                    means[weights] for weights in spans[epoch]
                )
                comparisons.append(
                    Comparison(
                        *(epoch, losses[epoch], before, after),
                        *(max(error_before, error_after), inference),
                    )
                )
        return [
            comparison
            for comparison in comparisons
            if math.isfinite(comparison.before)
            and math.isfinite(comparison.after)
        ]

    def _sample(self, batch_size: int) -> list[Batch]:
        """A sample of the examples, in batches of the training's size."""
        most = max(SAMPLE_SIZE, batch_size)
        sample = sample_examples(
            self._examples, most, self._rng, self._max_examples
        )
        size = min(batch_size, len(sample))
        return [
            sample.take(np.arange(start, start + size))
            for start in range(0, len(sample) - size + 1, size)
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
            self._model._clear_losses()  # of tracing
        if len(values) < 2:
            return values[0], 0.0
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        # Finite population correction: no error if the sample is everything.
        size = self._examples.size or math.inf
        unseen = max(0.0, 1 - sum(map(len, batches)) / size)
        return float(np.mean(values)), float(error) * math.sqrt(unseen)


def sample_examples(
    examples: Examples,
    count: int,
    rng: np.random.Generator,
    max_examples: int | None = None,
) -> Batch:
    """A uniform sample of examples, in random order.

    Args:
        examples: the examples.
        count: size of the sample, if there are as many.
        rng: what chooses.
        max_examples: number of examples to read, from the beginning, where
            they are not in memory; None for all.
    """
    in_memory = examples.bytes_read_per_example == 0
    sample: list[Batch] = []
    keys, read = np.zeros(0), 0
    for batch in examples.batches(_READ_SIZE):
        # The examples with the lowest random keys are a uniform sample.
        keys = np.concatenate([keys, rng.random(len(batch))])
        lowest = np.argsort(keys)[:count]
        sample = [join([*sample, batch]).take(lowest)]
        keys = keys[lowest]
        read += len(batch)
        if max_examples and read >= max_examples and not in_memory:
            break
    return sample[0]


def reports_compiled_loss(model: keras.Model) -> bool:
    """Whether the "loss" that `fit` reports is the compiled loss."""
    kind: Any = type(model)
    whole = model.distribute_strategy.num_replicas_in_sync == 1
    return (
        whole
        and compiled_loss(model) is not None
        and kind.train_step is keras.Model.train_step
        and kind.compute_loss is keras.Model.compute_loss
    )


def _steps_to_settle(model: keras.Model) -> int | None:
    """Number of steps after which moving averages are 99% data, or None."""
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


def _weights_around(
    run: TrainingRun, epoch: int
) -> tuple[Checkpoint | Path, Checkpoint | Path] | None:
    """The last recorded weights before an epoch, and the first after it."""
    before: list[Checkpoint | Path] = [c for c in run if c.epoch < epoch]
    if run.initial is not None:
        before.insert(0, run.initial)
    within = [c for c in run if c.epoch == epoch]
    after = within[-1:] + [c for c in run if c.epoch > epoch][:1]
    if not before or not after:
        return None
    return before[-1], after[0]


def _batch_size(
    model: keras.Model, run: TrainingRun, examples: Examples
) -> int:
    """Estimate of the batch size of the training."""
    epochs, steps = run[-1].epoch, run[-1].step
    if not examples.size or not steps:
        return min(_BATCH_SIZE, examples.size or _BATCH_SIZE)
    every = getattr(model.optimizer, "gradient_accumulation_steps", None) or 1
    batches = max(1, round(steps * every / epochs))
    return max(1, min(examples.size, math.ceil(examples.size / batches)))
