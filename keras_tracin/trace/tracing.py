"""TracInIdeal: how each training step changed the loss of queries.

At every step of `model.fit`, the loss of each query is measured before and
after. With `b_i` the weight of example i in its batch's loss (1/b for a mean,
1 for a sum), the first-order estimate of its effect on query z' is

    F_i = η_t b_i ∇ℓ(w_t, z_i) · ∇ℓ(w_t, z'),    positive: the loss went down,

as in the derivation of TracIn. A step's real change is

    D = ℓ(w_t, z') - ℓ(w_{t+1}, z') = A + U.

`A` is the change by the plain gradient step
w̃ = w_t - η_t Σ_i b_i ∇ℓ(w_t, z_i). It is divided among the batch: each example
gets its F_i and an equal share of the remainder A - Σ_i F_i, the second-order
part. `U = D - A` is the change that no example of this step caused: by momentum
from earlier steps, an adaptive optimizer's scaling, clipping, weight decay,
regularisers and BatchNormalization's statistics. For plain SGD without these,
w̃ is w_{t+1} and U is zero. So

    Σ_z score(z, z') + unattributed(z') = the query's total loss drop.

The b_i depend on the batch: with masks they count positions; sample and class
weights are part of the losses. Gradients of training examples are taken in
training mode, with Dropout's seeds replayed, so that Dropout drops the same
units as in the real step. Layers that mix the examples of a batch in training,
such as BatchNormalization, have no per-example gradient there: they run in
inference mode, and the difference is part of U. So do recurrent layers with
inner dropout, and layers without a rule. Queries always run in inference
mode.

Synopsis:

    trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=3)
    trace.scores            # [num_queries, num_train]
    trace.unattributed      # [num_queries]
    trace.steps.real        # [num_steps, num_queries]
    trace.correlation()     # of real and first-order changes
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.trace.batches import TrainingBatches
from keras_tracin.trace.gradients import StepGradients
from keras_tracin.trace.measures import Before, Measures
from keras_tracin.trace.observing import (
    check_finite,
    check_observable,
    fit_with_observer,
)
from keras_tracin.trace.queries import read_queries
from keras_tracin.trace.recording import Recording, recorded_history
from keras_tracin.trace.result import TrainingTrace, pack

_SEGMENT = 2**28  # bytes of shares to collect before they are written


@exclusive_access
def trace_training(
    model: keras.Model,
    train: Any,
    queries: Any,
    *,
    epochs: int,
    batch_size: int = 32,
    seed: int = 0,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    directory: str | os.PathLike | None = None,
    resume: bool = True,
    verbose: str | int = 0,
) -> TrainingTrace:
    """Trains with `model.fit` and traces how steps change losses of queries.

    The optimizer, schedules, `train_step` and callbacks work as usual, and the
    same weights result. A callback's changes of the weights between two steps
    count towards neither step.

    Example:
    ```python
    trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=3)
    trace.attribution().top_k(10).proponents.ids
    ```

    Args:
        model: the built and compiled model to train.
        train: arrays `(x, y[, sample_weight])`, shuffled here each epoch; or
            a batched dataset with ids (`with_ids`), in its own order.
        queries: a few examples, in either form, that fit in memory.
        epochs: number of epochs at the end of which training stops.
        batch_size: batch size for arrays; a dataset has its own.
        seed: seed of the order of arrays.
        class_weight: class weights for `model.fit`. Queries are not weighted.
        callbacks: callbacks for `model.fit`. Their state, such as a patience
            counter, is not recorded.
        directory: directory to write the table of steps to at the end of each
            epoch, with the weights and the optimizer's state; None, the
            default, keeps the table in memory. The directory also holds a
            `TrainingRun`, for `TracIn` and other methods.
        resume: If true, training continues after the last epoch recorded in
            `directory`, from its weights, and ends with the same table as an
            uninterrupted training; if false, it begins anew and replaces the
            record.
        verbose: verbosity of `model.fit`.

    Raises:
        TypeError: if `train` is a dataset without ids.
        ValueError: if the model is not built, if a batch does not make one
            update (`steps_per_execution`, gradient accumulation), if the loss
            has no value for each example, if one or its gradient is NaN or
            infinite, naming the ids, or if `directory` holds anything but a
            trace of this model, with these queries, seed and batch size.
    """
    check_observable(model)
    query = read_queries(model, queries, "queries")
    recording = Recording.open(
        None if directory is None else Path(directory),
        model,
        {
            "kind": "trace",
            "batch_size": batch_size,
            "seed": seed,
            "optimizer": type(model.optimizer).__name__,
            "queries": content_digest([query]),
        },
        resume,
    )
    batches = TrainingBatches(
        train, batch_size, seed, recording.num_epochs, model
    )
    gradients = StepGradients(model, batches.step_spec, class_weight)
    observer = _Tracer(query, Measures(model, query.data, gradients))
    history = fit_with_observer(
        model,
        batches,
        observer,
        recording,
        epochs=epochs,
        class_weight=class_weight,
        callbacks=callbacks,
        verbose=verbose,
    )
    if recording.num_epochs:
        history = recorded_history(Path(str(directory)))
    return TrainingTrace.from_segments(recording.segments(), history)


class _Tracer:
    """Observer that measures a step's row of the table and its shares."""

    def __init__(self, query: Batch, measures: Measures):
        self._query, self._measures = query, measures

    def before(self, ids: np.ndarray, data: Any, rate: float) -> Before:
        before = self._measures.before(data, rate)
        check_finite(before.losses, self._query.ids, "the losses of queries")
        check_finite(tf.transpose(before.shares), ids)
        return before

    def after(self, before: Before, stepped: bool) -> dict[str, Any]:
        losses, shares = _as_float64(before.losses), _as_float64(before.shares)
        after, along = map(_as_float64, self._measures.after(before))
        if not stepped:
            shares = np.zeros_like(shares)
        real, first_order = losses - after, shares.sum(axis=1)
        unattributed = np.zeros_like(real)
        if self._measures.is_plain:
            along = first_order
        else:
            after_plain_step = (
                _as_float64(before.stepped) if stepped else losses
            )
            unattributed = after_plain_step - after
        remainder = real - unattributed - first_order
        return {
            "real": real,
            "first_order": first_order,
            "along_step": along,
            "unattributed": unattributed,
            "shares": shares + remainder[:, np.newaxis] / shares.shape[1],
        }

    def saves_after(self, step: int) -> bool:
        return False

    def is_full(self, rows: list[dict[str, Any]]) -> bool:
        return len(rows) * rows[-1]["shares"].nbytes > _SEGMENT

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return pack(rows, self._query.ids)


def _as_float64(values: tf.Tensor) -> np.ndarray:
    return np.asarray(values, np.float64)
