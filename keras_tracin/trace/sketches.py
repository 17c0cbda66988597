"""Sketches of a training on disk, and scores from them.

Synopsis:

    sketches = TrainingSketches("runs/sketched", projection)
    sketches.influence()                       # queries given while training
    sketches.influence(others, model=model)    # later queries
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.sketch_steps import sketches
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.projection import Projection, describe
from keras_tracin.results import Attribution
from keras_tracin.runs import TrainingRun, run_weights
from keras_tracin.trace.queries import read_queries
from keras_tracin.trace.recording import read_segments


class TrainingSketches:
    """The sketches of a training, read from disk.

    Args:
        directory: the `directory` of `sketch_training`.
        projection: the projection of the sketches, for later queries.

    Attributes:
        run: the `TrainingRun` with the saved weights.
        train_ids: ids of the training examples, `[num_train]`, ascending.

    Raises:
        ValueError: if there are no sketches, if a file is damaged, or if the
            sketches have another projection.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        projection: Projection | None = None,
    ):
        self.run = TrainingRun(directory)
        self._segments = read_segments(Path(directory), kind="sketches")
        self._projection = projection
        ids = np.concatenate([s["ids"] for s in self._segments])
        self.train_ids = np.unique(ids)
        recorded = self._segments[0]["projection"].item()
        if projection is not None and repr(describe(projection)) != recorded:
            raise ValueError(
                f"The sketches in {directory} were made by {recorded}. "
                f"Received the projection {projection!r}; pass that one."
            )

    @exclusive_access
    def influence(
        self, test: Any = None, *, model: keras.Model | None = None
    ) -> Attribution:
        """Scores of all training examples.

        Args:
            test: the queries; by default those given while training.
            model: the trained model, which `test` needs. Saved weights are
                put into it; afterwards its own are restored.

        Returns:
            An `Attribution` with `scores [m, num_train]`. Unlike TracIn, they
            use every step: a score estimates by how much training on the
            example lowered the loss of the query.

        Raises:
            ValueError: if no queries were sketched and none are given, or if
                model or projection is missing.
        """
        if test is None:
            if "query_sketches" not in self._segments[0]:
                raise ValueError(
                    "No queries were sketched while training. Received "
                    "test=None; pass queries as `test`, and the model."
                )
            sketches_by_step = (
                sketches
                for segment in self._segments
                for sketches in segment["query_sketches"]
            )
            return self._scores(
                self._segments[0]["query_ids"], sketches_by_step
            )
        if model is None or self._projection is None:
            raise ValueError(
                "Later queries need the model and the projection. "
                f"Received model={model!r}, projection={self._projection!r}; "
                "pass `model=` here, and `projection=` to TrainingSketches."
            )
        query = read_queries(model, test, "test")
        with run_weights(model) as load:
            return self._scores(
                query.ids, self._sketch_queries(model, query, load)
            )

    def _scores(self, query_ids, queries: Iterator[np.ndarray]) -> Attribution:
        """Scores from each step's sketches of the queries, in order."""
        scores = np.zeros((len(self.train_ids), len(query_ids)))
        for segment in self._segments:
            ends = np.cumsum(segment["batch_sizes"])
            places = np.searchsorted(self.train_ids, segment["ids"])
            for start, stop in zip([0, *ends], ends, strict=False):
                products = segment["sketches"][start:stop] @ next(queries).T
                np.add.at(scores, places[start:stop], products)
        return Attribution(
            scores.T.astype(np.float32), query_ids, self.train_ids
        )

    def _sketch_queries(
        self, model, query: Batch, load
    ) -> Iterator[np.ndarray]:
        """Sketches of queries at the last saved weights before each step."""
        assert self.run.initial is not None
        assert self._projection is not None
        functions = GradientFunctions(
            model, per_example_loss(model), query.data
        )
        sketch = sketches(functions, self._projection)
        weights_at: list[Any] = [self.run.initial, *self.run]
        steps = [0, *(checkpoint.step or 0 for checkpoint in self.run)]
        num_steps = sum(len(s["batch_sizes"]) for s in self._segments)
        for weights, first, last in zip(
            weights_at, steps, [*steps[1:], num_steps], strict=True
        ):
            if first < last:
                load(weights)
            for position in range(first, last):
                yield sketch(query.data, np.int32(position)).numpy()
