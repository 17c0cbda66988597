"""Sketches of each step's gradients, saved while training.

This is the training-time form of Pruthi et al. (2020), section E. In iteration
t it saves η_t G ∇ℓ(w_t, z_t); the score for a query is the product with
G ∇ℓ(w_t, z'), summed over the steps:

    score(z, z') = Σ_{t: z ∈ B_t} (η_t b_z G_t ∇ℓ(w_t, z)) · (G_t ∇ℓ(w_t, z'))

with b_z the weight of z in its batch's loss, 1/b for a mean. It is an unbiased
estimate of the first-order part of the scores of `trace_training`. Each step
has its own G, so that errors average out.

Queries given while training are sketched at the same steps. Later queries need
saved weights: weights at the end of each epoch are always saved, and
`keep_weights=k` saves those after every k-th step; for a step in between, the
gradient of a query is taken at the last saved weights before it.
`keep_weights=1` is exact.

Synopsis:

    sketches = kt.sketch_training(
        model, (x, y), queries, epochs=3, directory="runs/sketched",
        projection=kt.TensorSketch(dim=256))
    sketches.influence()                          # the queries given above
    sketches.influence(others, model=model)       # later queries
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
from keras_tracin.engine.steps import batch_spec, kind_of
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.placement import place
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.projection import Projection, check_projection, describe
from keras_tracin.trace.batches import TrainingBatches
from keras_tracin.trace.gradients import StepGradients, triple
from keras_tracin.trace.observing import (
    check_finite,
    check_observable,
    fit_with_observer,
)
from keras_tracin.trace.queries import read_queries
from keras_tracin.trace.recording import Recording
from keras_tracin.trace.sketches import TrainingSketches

_QUERIES = "the gradients of queries"
_SEGMENT = 2**26  # bytes of sketches to collect before they are written


@exclusive_access
def sketch_training(
    model: keras.Model,
    train: Any,
    queries: Any = None,
    *,
    epochs: int,
    projection: Projection,
    directory: str | os.PathLike,
    batch_size: int = 32,
    seed: int = 0,
    keep_weights: int | None = None,
    class_weight: Mapping[int, float] | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    resume: bool = True,
    verbose: str | int = 0,
) -> TrainingSketches:
    """Trains with `model.fit` and saves sketches of every step's gradients.

    Example:
    ```python
    sketches = kt.sketch_training(
        model, (x, y), epochs=3, directory="runs/sketched",
        projection=kt.TensorSketch(dim=256), keep_weights=50)
    sketches.influence((x_test, y_test), model=model)
    ```

    Args:
        model: the built and compiled model to train.
        train: arrays `(x, y[, sample_weight])`, shuffled here each epoch; or
            a batched dataset with ids (`with_ids`), in its own order.
        queries: queries to sketch at every step; none by default.
        epochs: number of epochs at the end of which training stops.
        projection: random projection of the gradients. On disk, a step with
            `b` examples and `m` queries takes `4 · dim · (b + m)` bytes.
        directory: directory to write to. It also holds a `TrainingRun`.
        batch_size: batch size for arrays; a dataset has its own.
        seed: seed of the order of arrays.
        keep_weights: number of steps after which weights are saved, in
            addition to those at the end of each epoch.
        class_weight: class weights for `model.fit`.
        callbacks: callbacks for `model.fit`.
        resume: If true, training continues after the last epoch recorded in
            `directory`; if false, it begins anew and replaces the record.
        verbose: verbosity of `model.fit`.

    Raises:
        TypeError: if `projection` is not a projection, or `train` is a dataset
            without ids.
        ValueError: as for `trace_training`.
    """
    check_projection(projection)
    if keep_weights is not None and keep_weights < 1:
        raise ValueError(
            "`keep_weights` should be a number of steps of 1 or more. "
            f"Received: {keep_weights!r}."
        )
    check_observable(model)
    query = None
    if queries is not None:
        query = read_queries(model, queries, "queries")
    settings = {
        "kind": "sketches",
        "projection": describe(projection),
        "batch_size": batch_size,
        "seed": seed,
        "optimizer": type(model.optimizer).__name__,
        "queries": None if query is None else len(query),
        "query_content": None if query is None else content_digest([query]),
    }
    recording = Recording.open(Path(directory), model, settings, resume)
    batches = TrainingBatches(
        train, batch_size, seed, recording.num_epochs, model
    )
    gradients = StepGradients(model, batches.step_spec, class_weight)
    observer = _SketchingObserver(model, query, gradients, projection)
    observer.position = recording.num_steps
    observer.keep_weights = keep_weights
    fit_with_observer(
        model,
        batches,
        observer,
        recording,
        epochs=epochs,
        class_weight=class_weight,
        callbacks=callbacks,
        verbose=verbose,
    )
    return TrainingSketches(directory, projection=projection)


class _SketchingObserver:
    """Observer that sketches gradients of each batch and of the queries."""

    def __init__(
        self,
        model: keras.Model,
        query: Batch | None,
        gradients: StepGradients,
        projection: Projection,
    ):
        self.position = 0
        self.keep_weights: int | None = None
        self._model, self._gradients = model, gradients
        self._projection, self._query = projection, query
        self._loss = per_example_loss(model)
        self._compiled: dict[str, Any] = {}
        if query is not None:
            self._data = tf.nest.map_structure(tf.convert_to_tensor, query.data)
            x, y, sample_weight = triple(batch_spec(self._data))
            self._placement = place(
                model, x, loss=self._loss, y=y, sample_weight=sample_weight
            )

    def saves_after(self, step: int) -> bool:
        """Whether to save the weights after this step."""
        every = self.keep_weights
        return every is not None and step % every == 0

    def is_full(self, rows: list[dict[str, Any]]) -> bool:
        """Whether to write the rows now, to limit memory."""
        names = ("sketches", "query_sketches")
        size = sum(rows[-1][name].nbytes for name in names if name in rows[-1])
        return len(rows) * size > _SEGMENT

    def before(self, ids: np.ndarray, data: Any, rate: float) -> Any:
        kind = kind_of(data)
        if kind not in self._compiled:
            position = tf.TensorSpec([], tf.int32)
            batch = compile_step(
                self._sketch_batch, (batch_spec(data), position)
            )
            asked = () if self._query is None else batch_spec(self._data)
            queries = compile_step(
                self._sketch_known_queries, (asked, position)
            )
            self._compiled[kind] = batch, queries
        batch, queries = self._compiled[kind]
        position = np.int32(self.position)
        self.position += 1
        row = {"sketches": rate * batch(data, position).numpy()}
        if self._query is not None:
            row["query_sketches"] = queries(self._data, position).numpy()
            check_finite(row["query_sketches"], self._query.ids, _QUERIES)
        check_finite(row["sketches"], ids)
        return row

    def after(self, row: dict[str, Any], stepped: bool) -> dict[str, Any]:
        if not stepped:
            row["sketches"] = np.zeros_like(row["sketches"])
        return row

    def pack(self, rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        arrays = {
            "learning_rate": np.array([row["learning_rate"] for row in rows]),
            "ids": np.concatenate([row["ids"] for row in rows]),
            "batch_sizes": np.array([len(row["ids"]) for row in rows]),
            "sketches": np.concatenate([row["sketches"] for row in rows]),
            "projection": np.array(repr(describe(self._projection))),
        }
        if self._query is not None:
            arrays["query_ids"] = self._query.ids
            arrays["query_sketches"] = np.array(
                [row["query_sketches"] for row in rows]
            )
        return arrays

    def _sketch_batch(self, data, position):
        captured = self._gradients.capture(data)
        return self._projection.sketch(captured.factors, position)

    def _sketch_known_queries(self, data, position):
        captured = capture(
            self._model, self._loss, triple(data), self._placement
        )
        return self._projection.sketch(captured.factors, position)
