"""Passes over weights and training batches, as values.

A `Pass` says which compiled step runs at which weights, what the step is
given, and what becomes of its results. It can be run (`sweep`), planned and
forecast.

Synopsis:

    scores = Pass("TracIn", queries.steps.train.products, weights,
                  queries=queries, prepare=queries.factors)
    scores = products_pass("TracIn", queries, weights)     # the same
    sweep(engine, scores, Sink(columns.add), Call())
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.queries import Queries
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.visits import Visit, Weights


class Gathering(Protocol):
    """Puts a chunk's results of all checkpoints together."""

    def add(self, visit: Visit, batch: Batch, rows: slice, values: Any) -> None:
        """Takes one batch's results.

        Args:
            visit: the checkpoint that they were computed at.
            batch: the examples.
            rows: their places in the chunk.
            values: the results of `Pass.finish`, without the examples that
                filled the batch up.
        """

    def result(self) -> Any:
        """The gathered results for the sink, `[..., c]`."""


class Sums:
    """Sums of scores over the checkpoints.

    Args:
        chunk: the training examples.
    """

    def __init__(self, chunk: Chunk):
        self._size = len(chunk)
        self._sums: np.ndarray | None = None

    def add(
        self, visit: Visit, batch: Batch, rows: slice, values: np.ndarray
    ) -> None:
        """Adds scores `[..., b]` to the columns `rows`."""
        if self._sums is None:
            shape = (*values.shape[:-1], self._size)
            self._sums = np.zeros(shape, values.dtype)
        self._sums[..., rows] += values

    def result(self) -> np.ndarray:
        """The sums `[..., c]`."""
        return np.zeros(0) if self._sums is None else self._sums


def no_preparation(visit: Visit) -> None:
    """The preparation for steps that need only the batch."""


def usual_arguments(visit: Visit, prepared: Any) -> tuple:
    """The arguments of most steps after the batch.

    Returns:
        `([prepared,] rate[, position])`, without what is None and, unless the
        steps project, without a position.
    """
    extra = () if prepared is None else (prepared,)
    return (*extra, visit.rate, *visit.sketched_at)


def as_array(result: Any) -> np.ndarray:
    """A step's result `[..., n]` as it is, in NumPy."""
    return result.numpy()


def unscaled(scores: Any, chunk: Chunk) -> Any:
    """The scores of a chunk as they are."""
    return scores


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over weights × training batches, as a value.

    Attributes:
        title: the method's name, for the line that announces long work.
        step: a compiled step, `(data, *arguments) -> result`.
        weights: checkpoints to visit, each with its factor in the sum;
            `PRESENT_WEIGHTS` for the model as it is.
        queries: the queries that are scored, if any.
        prepare: called with a `Visit` once the weights are in the model;
            returns what `arguments` makes the step's arguments of, such as
            the queries' gradients.
        arguments: makes the step's arguments after the batch, of a `Visit`
            and what `prepare` returned.
        finish: makes an array `[..., n]`, the examples along the last axis,
            or a tuple of such arrays, of a step's result.
        compared: makes the array `[..., n]` that spot checks compare, of a
            step's result; by default `finish`. Needed where that makes a
            tuple, or takes long.
        gather: puts the arrays of a chunk's batches and checkpoints together;
            by default their sums over the checkpoints.
        rescale: `(gathered, chunk) -> gathered`, before the sink takes them.
        recall: `(visit, chunk, rows, arguments) -> values`, what `finish`
            would return for these rows of a chunk, from memory; by default
            the step is run.
        by_token: makes the step that tells the scores of training examples
            apart by a number of positions, for steps that are neither
            `products` nor `along`.
        held: bytes that `prepare` returns beside the queries.
        gathered: bytes that `gather` holds for each training example of a
            chunk, beside its scores.
        repeated: how often the pass is made, for its forecast.
        scores: whether `finish` returns scores, which are watched for
            underflow.
        gradients: whether the step takes gradients, of which a few are
            compared with plain TensorFlow's before it runs.
    """

    title: str
    step: Callable
    weights: Weights
    queries: Queries | None = None
    prepare: Callable[[Visit], Any] = no_preparation
    arguments: Callable[[Visit, Any], tuple] = usual_arguments
    finish: Callable[[Any], Any] = as_array
    compared: Callable[[Any], np.ndarray] | None = None
    gather: Callable[[Chunk], Gathering] = Sums
    rescale: Callable[[Any, Chunk], Any] = unscaled
    recall: Callable[[Visit, Chunk, slice, tuple], Any] | None = None
    by_token: Callable[[int], Callable] | None = None
    held: int = 0
    gathered: int = 0
    repeated: int = 1
    scores: bool = True
    gradients: bool = True

    def visits(self, projects: bool = False) -> list[Visit]:
        """The checkpoints to visit, in order.

        Args:
            projects: whether the steps make sketches, which differ from
                checkpoint to checkpoint.
        """
        visits = []
        for place, (checkpoint, rate) in enumerate(self.weights.items()):
            position = np.int32(place)
            given = (position,) if projects else ()
            visits.append(Visit(checkpoint, np.float32(rate), position, given))
        return visits


def products_pass(title: str, queries: Queries, weights: Weights) -> Pass:
    """The inner products of gradients, or of sketches, with those of queries.

    Args:
        title: the method's name.
        queries: a block of queries.
        weights: the checkpoints to sum over.
    """
    step = queries.steps.train.products
    return Pass(title, step, weights, queries, prepare=queries.factors)


def norms_pass(title: str, steps: GradientFunctions, weights: Weights) -> Pass:
    """The squared lengths of training examples' gradients or sketches.

    Args:
        title: the method's name.
        steps: the compiled steps for training examples.
        weights: the checkpoints to sum over.
    """
    return Pass(title, steps.squared_norms, weights)
