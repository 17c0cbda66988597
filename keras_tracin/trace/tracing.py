"""TracInIdeal: how each training step really moved the loss of queries.

At every step of a `model.fit`, the loss of each query is taken before and
after. With `b_i` the weight of example i in its batch's loss (1/b for a mean,
1 for a sum), the first-order estimate of what it did to query z' is

    F_i = η_t b_i ∇ℓ(w_t, z_i) · ∇ℓ(w_t, z'),    positive: the loss went down,

as in the derivation of TracIn. A step's real change is

    D = ℓ(w_t, z') - ℓ(w_{t+1}, z') = A + U.

`A` is what the plain gradient step w̃ = w_t - η_t Σ_i b_i ∇ℓ(w_t, z_i) would
have changed. It is split over the batch: each example has its F_i and an equal
share of the remainder A - Σ_i F_i, the second-order part. `U = D - A` is what
no example of this step caused: momentum carried over, an adaptive optimizer's
scaling, clipping, weight decay and regularisers, BatchNormalization's
statistics. For plain SGD without these, w̃ is w_{t+1} and U is zero. So

    Σ_z score(z, z') + unattributed(z') = the query's total loss drop.

The b_i are the batch's own: with masks they count positions, sample and class
weights are part of the losses. Gradients of training examples are those of
training mode, with Dropout's seeds replayed: Dropout drops what the real step
drops. Layers that mix the examples of a batch in training, as
BatchNormalization does, have no gradient of one example there; theirs are of
inference mode, and what training did otherwise is part of U. So are those of
recurrent layers with dropout inside, and of layers without a rule of their own.
Queries are always in inference mode.

Synopsis:

    trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=3)
    trace.scores            # [num_queries, num_train]
    trace.unattributed      # [num_queries]
    trace.steps.real        # [num_steps, num_queries]
    trace.correlation()     # of real and first-order change
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
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.models.exclusive import exclusively
from keras_tracin.trace.gradients import StepGradients
from keras_tracin.trace.measures import Before, Measures
from keras_tracin.trace.recording import Recording, recorded_history
from keras_tracin.trace.result import TrainingTrace, pack
from keras_tracin.trace.source import Source
from keras_tracin.trace.watching import (
    check_can_be_watched,
    check_finite,
    watched_fit,
)

_MOST_QUERIES = 100_000
_SEGMENT = 2**28  # bytes of shares that are held until they are written


@exclusively
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
    """Trains with `model.fit` and traces what each step did to each query.

    The model's optimizer, schedules, `train_step` and callbacks do what they
    do without it, and the same weights result. What a callback changes in the
    weights between two steps counts to neither.

    Example:
    ```python
    trace = kt.trace_training(model, (x, y), (x_test, y_test), epochs=3)
    trace.attribution().top_k(10).proponents.ids
    ```

    Args:
        model: a built and compiled model; it is trained.
        train: arrays `(x, y[, sample_weight])`, shuffled here each epoch; or
            a batched dataset with ids (`with_ids`), in its own order.
        queries: a few examples, in either form, that fit memory.
        epochs: how long to train.
        batch_size: for arrays; a dataset has its own.
        seed: of the order of arrays.
        class_weight: as for `model.fit`. Queries are not weighed by it.
        callbacks: as for `model.fit`. Their own state (a patience, say) is
            not recorded.
        directory: where the table of steps is written at the end of each
            epoch, with the weights and the optimizer's state; nowhere by
            default. It is a `TrainingRun` as well, for `TracIn` and others.
        resume: go on after the last epoch recorded in `directory`, with its
            weights in place of the model's, and end with the same table as a
            training that was not interrupted; False begins anew and replaces
            what is there.
        verbose: as for `model.fit`.

    Raises:
        TypeError: if `train` is a dataset without ids.
        ValueError: if the model is not built, if a batch does not make one
            update (`steps_per_execution`, gradient accumulation), if the loss
            has no value for each example, if one or its gradient is NaN or
            infinite, naming the ids, or if `directory` holds anything but a
            trace of this model, with these queries, seed and batch size.
    """
    check_can_be_watched(model)
    query = open_for_model(model, queries, "queries").first(_MOST_QUERIES)
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
    source = Source(train, batch_size, seed, recording.done, model)
    gradients = StepGradients(model, source.watched_spec, class_weight)
    observer = _Tracer(query, Measures(model, query.data, gradients))
    history = watched_fit(
        model,
        source,
        observer,
        recording,
        epochs=epochs,
        class_weight=class_weight,
        callbacks=callbacks,
        verbose=verbose,
    )
    if recording.done:
        history = recorded_history(Path(str(directory)))
    return TrainingTrace.from_segments(recording.segments(), history)


class _Tracer:
    """Makes a step's row of the table, and its examples' shares."""

    def __init__(self, query: Batch, measures: Measures):
        self._query, self._measures = query, measures

    def before(self, ids: np.ndarray, data: Any, rate: float) -> Before:
        seen = self._measures.before(data, rate)
        check_finite(seen.losses, self._query.ids, "the losses of queries")
        check_finite(tf.transpose(seen.shares), ids)
        return seen

    def after(self, seen: Before, stepped: bool) -> dict[str, Any]:
        losses, shares = _wide(seen.losses), _wide(seen.shares)
        after, along = map(_wide, self._measures.after(seen))
        if not stepped:
            shares = np.zeros_like(shares)
        real, first_order = losses - after, shares.sum(axis=1)
        unattributed = np.zeros_like(real)
        if self._measures.is_plain:
            along = first_order
        else:
            plainly = _wide(seen.stepped) if stepped else losses
            unattributed = plainly - after
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
        one = rows[-1]
        return len(rows) * one["shares"].nbytes > _SEGMENT

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        return pack(rows, self._query.ids)


def _wide(values: tf.Tensor) -> np.ndarray:
    return np.asarray(values, np.float64)
