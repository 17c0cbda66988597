"""Queries' vectors in milliseconds, by weights that are held in memory.

The weights of all checkpoints are held as tensors, and one traced call makes a
query's sketch at each of them ("in parallel", Pruthi et al. 2020, section C):
no file is read and no weight of the model is changed. Weights that do not
differ from one checkpoint to the next are held once.

Synopsis:

    resident = Resident(
        model, projection, [(path, digest)], [0.1], functions_like, value_like
    )
    resident.vectors(batch)     # [n, checkpoints · dim]
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.preprocessing import open_for_model
from keras_tracin.engine.diagnosis import (
    Suspect,
    broken_rows,
    check_fits,
    explaining,
)
from keras_tracin.engine.padding import takes_padding
from keras_tracin.engine.sketch_steps import sketches_at
from keras_tracin.engine.steps import GradientFunctions, kind_of
from keras_tracin.losses.per_example import PerExampleLoss
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.state import preserved
from keras_tracin.projection import Projection
from keras_tracin.runs import run_weights
from keras_tracin.storage import files

_REMEDY = (
    "Copy the run directory again, or build an index of a run without this "
    "checkpoint."
)


class Resident:
    """Makes the vectors of queries, with all weights held in memory.

    Args:
        model: the model; it is lent the weights while they are read, at the
            first query, and not touched after that.
        projection: makes a query's sketch at one checkpoint.
        files: the weights files and their SHA-256; none for the weights that
            the model has.
        rates: learning rate of each checkpoint.
        functions_like: returns the compiled steps for queries of the same
            form as a batch.
        value_like: returns the measure of such queries, in the form of a
            loss.
        column: which of the numbers that this has beside itself multiply the
            sketches, if any.
    """

    def __init__(
        self,
        model: keras.Model,
        projection: Projection,
        files: Sequence[tuple[Path, str]],
        rates: Sequence[float],
        functions_like: Callable[[Batch], GradientFunctions],
        value_like: Callable[[Batch], PerExampleLoss],
        column: int | None = None,
    ):
        self._model = model
        self._projection = projection
        self._files = files
        scales = np.sqrt(np.array(rates, np.float32))
        self._scales = scales[:, np.newaxis, np.newaxis]
        self._functions_like = functions_like
        self._value_like = value_like
        self._column = column
        self._steps: dict = {}
        self._assigns: dict[str, bool] = {}  # whether a query moves variables

    @functools.cached_property
    def _weights(self) -> list[list[tf.Tensor]]:
        """For each checkpoint, the values of `model.weights`."""
        if not self._files:
            return [[tf.identity(v.value) for v in self._model.weights]]
        weights: list[list[tf.Tensor]] = []
        with run_weights(self._model) as load:
            for path, sha256 in self._files:
                files.check_digest(path, sha256, _REMEDY)
                load(path)
                # No copies: the next ones are loaded into other memory.
                values = [tf.identity(v.value) for v in self._model.weights]
                if weights:
                    values = list(map(_share_equal, values, weights[-1]))
                weights.append(values)
        return weights

    def open(self, test: Any) -> Examples:
        """The queries, those of several lengths padded to the longest.

        Raises:
            ValueError: if padding changes what the model makes of them.
        """
        examples = open_for_model(self._model, test, "test")

        def accepts(short: Batch, padded: Batch) -> bool:
            value = self._value_like(short)
            return takes_padding(self._model, value, short, padded, "test")

        examples.pad(accepts)
        return examples

    def vectors(self, batch: Batch) -> np.ndarray:
        """The vectors `[n, checkpoints · dim]` of some queries.

        Raises:
            ValueError: if the model does not take them, or if a gradient is
                NaN or infinite, naming ids.
        """
        sketches = self._scales * self._sketches(batch)  # [c, n, dim]
        sketches = np.ascontiguousarray(sketches.transpose(1, 0, 2))
        vectors = sketches.reshape(len(batch), -1)
        if not np.isfinite(vectors).all():
            raise _not_finite(batch, vectors)
        return vectors

    def _sketches(self, batch: Batch) -> np.ndarray:
        """The sketches `[c, n, dim]`, by a step that was traced before.

        A trace watches the layers of the model, for which threads take turns;
        what was traced takes no more than the weights that are held.
        """
        kind = kind_of(batch.data)
        if kind in self._steps and not self._assigns[kind]:
            functions, step = self._steps[kind]
            try:
                return step(batch.data).numpy()
            except tf.errors.InvalidArgumentError:
                pass  # explained below
        with exclusive_access, preserved(self._model) as state:
            if kind not in self._steps:
                check_fits(self._model, batch, "test")
                functions = self._functions_like(batch)
                step = sketches_at(
                    functions, self._projection, self._weights, self._column
                )
            else:
                functions, step = self._steps[kind]
            with explaining([Suspect("query", batch, functions)]):
                sketches = step(batch.data).numpy()
            # Whether queries move variables, which then have to come back.
            self._assigns[kind] = bool(state.changed(seeds=True))
            self._steps[kind] = functions, step
        return sketches


def _share_equal(value: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
    """The tensor of the checkpoint before, where nothing has changed."""
    equal = bool(tf.reduce_all(tf.equal(value, before)))
    return before if equal else value


def _not_finite(batch: Batch, vectors: np.ndarray) -> ValueError:
    bad = batch.ids[~np.isfinite(vectors).all(axis=1)].tolist()
    parts = " and ".join(f"`{part}`" for part in broken_rows(batch))
    return ValueError(
        f"The gradients of query examples with ids {bad} are NaN or infinite. "
        f"Look for NaN in their {parts or 'inputs and labels'}."
    )
