"""TRAK's features, and the kernels that are fitted to them.

Synopsis:

    kernels = Kernels(engine, checkpoints, damping=1.0)
    kernels.fit(Call())
    kernels.solve(0, features)         # (ΦᵀΦ + λI)⁻¹ φ, [n, dim]
    kernels.pulls_of(chunk, engine)    # [c]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.per_example import PerExample
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.losses.model_outputs import PULL, WEIGHT
from keras_tracin.results import ScoreColumns

_SHARE = 4  # of the memory that features may take: one in so many

# `(visit, features [b, dim], numbers [b, 3]) -> [b]`
Measure = Callable[[Visit, np.ndarray, np.ndarray], np.ndarray]


class Kernels:
    """The kernels of all checkpoints, fitted to all training examples.

    Args:
        engine: the model and the training examples.
        checkpoints: the checkpoints, each with its share in the mean.
        damping: λ, as a multiple of the mean squared length of φ.

    Attributes:
        engine: the model and the training examples.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoints: Weights,
        damping: float,
    ):
        self.engine = engine
        self._checkpoints, self._damping = checkpoints, damping
        self._grams: list[list[np.ndarray]] = []
        self._held: list[_Held] = []
        self._features: list[tuple[PerExample, PerExample]] = []
        self._pulls: PerExample | None = None
        self._factors: list[list[tuple[np.ndarray, bool]]] = []

    @property
    def _sketches(self) -> tuple[tf.Tensor, ...]:
        """The sketches that have a kernel each, as types `[n, dim]`."""
        trace = self.engine.train_steps.features.get_concrete_function()
        sketches, _ = trace.structured_outputs
        return sketches

    @property
    def widths(self) -> tuple[int, ...]:
        """The lengths of the sketches that have a kernel each."""
        return tuple(sketch.shape[1] for sketch in self._sketches)

    @property
    def dtype(self) -> tf.DType:
        """The type of features."""
        return self._sketches[0].dtype

    def solve(self, position: int, features: np.ndarray) -> np.ndarray:
        """(ΦᵀΦ + λI)⁻¹ φ of each row of features, `[n, dim]`.

        Args:
            position: the checkpoint's.
            features: `[n, dim]`.
        """
        parts = [
            scipy.linalg.cho_solve(factor, part.T).T
            for factor, part in zip(
                self._factors[position], self._cut(features), strict=True
            )
        ]
        return np.concatenate(parts, axis=1)

    def inverse_roots(self, position: int) -> list[np.ndarray]:
        """L⁻¹ of each kernel at a checkpoint, where ΦᵀΦ + λI is L Lᵀ.

        Args:
            position: the checkpoint's.
        """
        return [
            scipy.linalg.solve_triangular(lower, np.eye(len(lower)), lower=True)
            for lower, _ in self._factors[position]
        ]

    def _cut(self, features: np.ndarray) -> list[np.ndarray]:
        return np.split(features, np.cumsum(self.widths)[:-1], axis=1)

    @property
    def fitted(self) -> bool:
        """Whether the kernels are there."""
        return self._pulls is not None

    def pulls_of(self, chunk: Chunk, engine: Engine) -> np.ndarray:
        """The mean over checkpoints of Q, `[c]`.

        Args:
            chunk: training examples.
            engine: the engine whose training examples they are.
        """
        assert self._pulls is not None
        return self._pulls.of(chunk, engine.train)

    def fit(self, call: Call) -> None:
        """Passes over the training examples, unless that has been done.

        Args:
            call: the call that needs the kernels.

        Raises:
            ValueError: if ΦᵀΦ + λI cannot be inverted, or a gradient is NaN or
                infinite.
        """
        if self.fitted:
            return
        self._grams, self._held = [], []
        columns = ScoreColumns()
        # The parts on disk, and their sizes, are those of scores.
        alone = Call(None, call.verbose)
        sweep(self.engine, self.fitting_pass(), Sink(columns.add), alone)
        grams, self._grams = self._grams, []
        pulls = np.mean(columns.scores, axis=0)
        self._factors = [
            [_factorize(gram, self._damping, len(pulls)) for gram in blocks]
            for blocks in grams
        ]
        held, self._held = self._held, []
        if all(one.fits for one in held):
            self._features = [
                (
                    self._of_examples(columns.ids, features),
                    self._of_examples(columns.ids, numbers),
                )
                for features, numbers in (one.joined() for one in held)
            ]
        self._pulls = self._of_examples(columns.ids, pulls)

    def _of_examples(self, ids: np.ndarray, values: np.ndarray) -> PerExample:
        return PerExample(self.engine.train, ids, values)

    @property
    def holds_features(self) -> bool:
        """Whether the features of all training examples are in memory."""
        return bool(self._features)

    def recall(
        self, visit: Visit, chunk: Chunk, rows: slice, engine: Engine
    ) -> tuple[np.ndarray, np.ndarray]:
        """Features `[dim, b]` and numbers `[3, b]` of some rows of a chunk.

        Args:
            visit: the checkpoint.
            chunk: training examples.
            rows: those of them to return.
            engine: the engine whose training examples they are.
        """
        features, numbers = self._features[visit.position]
        return (
            features.of(chunk, engine.train)[rows].T,
            numbers.of(chunk, engine.train)[rows].T,
        )

    def fitting_pass(self) -> Pass:
        """The pass that sums ΦᵀΦ and returns Q, `[checkpoints, n]`."""
        return features_pass(
            "TRAK's kernels", self.engine, self._checkpoints, self._take
        )

    def _take(
        self, visit: Visit, features: np.ndarray, numbers: np.ndarray
    ) -> np.ndarray:
        """Adds a batch to ΦᵀΦ; returns its Q."""
        if visit.position == len(self._grams):
            self._grams.append([np.zeros([n, n]) for n in self.widths])
            share = self.engine.execution.memory // _SHARE
            self._held.append(_Held(share // len(self._checkpoints)))
        self._held[visit.position].add(features, numbers)
        weights = numbers[:, WEIGHT, np.newaxis]
        parts = self._cut(features)
        for gram, part in zip(self._grams[visit.position], parts, strict=True):
            gram += part.T @ (part * weights)
        return numbers[:, PULL]


class _Held:
    """Features and numbers of the examples that were seen, while they fit.

    Args:
        most: bytes that they may take.
    """

    def __init__(self, most: int):
        self._most = most
        self._features: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []
        self.fits = True

    def add(self, features: np.ndarray, numbers: np.ndarray) -> None:
        """Takes the features `[b, dim]` and numbers `[b, 3]` of a batch."""
        self._most -= features.nbytes + numbers.nbytes
        self.fits = self._most >= 0
        if self.fits:
            self._features.append(features)
            self._numbers.append(numbers)
        else:
            self._features, self._numbers = [], []

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """`[n, dim]` and `[n, 3]`."""
        features, self._features = self._features, []
        return np.concatenate(features), np.concatenate(self._numbers)


def features_pass(
    title: str,
    engine: Engine,
    checkpoints: Weights,
    measure: Measure,
    rescale: Callable[[np.ndarray, Chunk], np.ndarray] | None = None,
) -> Pass:
    """A pass that gathers a number of each example at each checkpoint.

    Args:
        title: the method's name.
        engine: the model and the training examples.
        checkpoints: the checkpoints to visit.
        measure: makes the number of each of a batch's features and numbers.
        rescale: makes `[c]` of the numbers `[checkpoints, c]` of a chunk.
    """
    work = Pass(
        title,
        engine.train_steps.features,
        checkpoints,
        arguments=lambda visit, _: (visit.position,),
        finish=_features_and_numbers,
        compared=lambda result: _features_and_numbers(result)[0],
        gather=lambda _: _PerCheckpoint(measure),
        scores=False,
    )
    return (
        work if rescale is None else dataclasses.replace(work, rescale=rescale)
    )


def joined(sketches: Sequence[tf.Tensor]) -> np.ndarray:
    """Sketches of several groups as one row of each example, `[n, dim]`."""
    rows = [sketch.numpy() for sketch in sketches]
    return rows[0] if len(rows) == 1 else np.concatenate(rows, axis=1)


def _features_and_numbers(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """`[dim, n]` and `[3, n]`."""
    sketches, numbers = result
    return joined(sketches).T, numbers.numpy().T


class _PerCheckpoint:
    """Numbers of training examples at each checkpoint, `[checkpoints, c]`.

    Args:
        measure: makes the number of each of a batch's features and numbers.
    """

    def __init__(self, measure: Measure):
        self._measure = measure
        self._numbers: list[list[np.ndarray]] = []

    def add(
        self,
        visit: Visit,
        batch: Batch,
        rows: slice,
        values: tuple[np.ndarray, np.ndarray],
    ) -> None:
        """Takes the features `[dim, b]` and numbers `[3, b]` of a batch."""
        features, numbers = values
        if visit.position == len(self._numbers):
            self._numbers.append([])
        self._numbers[visit.position].append(
            self._measure(visit, features.T, numbers.T)
        )

    def result(self) -> np.ndarray:
        """The numbers, `[checkpoints, c]`."""
        return np.stack([np.concatenate(row) for row in self._numbers])


def _factorize(
    gram: np.ndarray, damping: float, count: int
) -> tuple[np.ndarray, bool]:
    """Cholesky's factor of the Gram matrix of `count` examples, damped."""
    dim = len(gram)
    gram[np.diag_indices(dim)] += damping * np.trace(gram) / count
    try:
        return scipy.linalg.cho_factor(gram, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError as error:
        raise ValueError(
            f"The features of the training examples, {dim} numbers each, do "
            f"not span their space: ΦᵀΦ + λI with damping={damping} cannot be "
            "inverted. Pass a larger `damping`, 1 for example, or a "
            "projection with a smaller `dim`."
        ) from error
