"""TRAK's features, and the kernels that are fitted to them.

Synopsis:

    kernels = Kernels(engine, checkpoints, output, damping=1.0)
    kernels.fit(Call())
    kernels.factors[0]                 # Cholesky's factor of ΦᵀΦ + λI
    kernels.pulls_of(chunk, engine)    # [c]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.per_example import PerExample
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.losses.model_outputs import ModelOutput, sample_weights
from keras_tracin.results import ScoreColumns

# `(visit, batch, features [b, dim], outputs [b]) -> [b]`
_SHARE = 4  # of the memory that features may take: one in so many
Measure = Callable[[Visit, Batch, np.ndarray, tf.Tensor], np.ndarray]


class Kernels:
    """The kernels of all checkpoints, fitted to all training examples.

    Args:
        engine: the model and the training examples.
        checkpoints: the checkpoints, each with its share in the mean.
        output: the model's output that features are gradients of.
        damping: λ, as a multiple of the mean squared length of φ.

    Attributes:
        engine: the model and the training examples.
        factors: Cholesky's factors of ΦᵀΦ + λI at each checkpoint.
    """

    def __init__(
        self,
        engine: Engine,
        checkpoints: Weights,
        output: ModelOutput,
        damping: float,
    ):
        self.engine = engine
        self._checkpoints, self._output = checkpoints, output
        self._damping = damping
        self._grams: list[np.ndarray] = []
        self._held: list[_Held] = []
        self._features: list[tuple[PerExample, PerExample]] = []
        self._pulls: PerExample | None = None
        self.factors: list[tuple[np.ndarray, bool]] = []

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
        self.factors = [
            _factorize(gram, self._damping, len(pulls)) for gram in grams
        ]
        held, self._held = self._held, []
        if all(one.fits for one in held):
            self._features = [
                (
                    self._of_examples(columns.ids, features),
                    self._of_examples(columns.ids, outputs),
                )
                for features, outputs in (one.joined() for one in held)
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
        """Features `[dim, b]` and outputs `[b]` of some rows of a chunk.

        Args:
            visit: the checkpoint.
            chunk: training examples.
            rows: those of them to return.
            engine: the engine whose training examples they are.
        """
        features, outputs = self._features[visit.position]
        return (
            features.of(chunk, engine.train)[rows].T,
            outputs.of(chunk, engine.train)[rows],
        )

    def fitting_pass(self) -> Pass:
        """The pass that sums ΦᵀΦ and returns Q, `[checkpoints, n]`."""
        return features_pass(
            "TRAK's kernels", self.engine, self._checkpoints, self._take
        )

    def _take(
        self,
        visit: Visit,
        batch: Batch,
        features: np.ndarray,
        outputs: tf.Tensor,
    ) -> np.ndarray:
        """Adds a batch to ΦᵀΦ; returns its Q."""
        if visit.position == len(self._grams):
            self._grams.append(np.zeros([features.shape[1]] * 2))
            share = self.engine.execution.memory // _SHARE
            self._held.append(_Held(share // len(self._checkpoints)))
        self._held[visit.position].add(features, outputs.numpy())
        weights = sample_weights(batch.sample_weight, outputs)
        weighted = features * weights[:, np.newaxis]
        self._grams[visit.position] += features.T @ weighted
        return self._output.pull(batch.y, outputs, batch.sample_weight)


class _Held:
    """Features and outputs of the examples that were seen, while they fit.

    Args:
        most: bytes that they may take.
    """

    def __init__(self, most: int):
        self._most = most
        self._features: list[np.ndarray] = []
        self._outputs: list[np.ndarray] = []
        self.fits = True

    def add(self, features: np.ndarray, outputs: np.ndarray) -> None:
        """Takes the features `[b, dim]` and outputs `[b]` of a batch."""
        self._most -= features.nbytes + outputs.nbytes
        self.fits = self._most >= 0
        if self.fits:
            self._features.append(features)
            self._outputs.append(outputs)
        else:
            self._features, self._outputs = [], []

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """`[n, dim]` and `[n]`."""
        features, self._features = self._features, []
        return np.concatenate(features), np.concatenate(self._outputs)


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
        measure: makes a batch's numbers of its features and outputs.
        rescale: makes `[c]` of the numbers `[checkpoints, c]` of a chunk.
    """
    work = Pass(
        title,
        engine.train_steps.sketched_with_values,
        checkpoints,
        arguments=lambda visit, _: (visit.position,),
        finish=_features_and_outputs,
        compared=lambda result: _features_and_outputs(result)[0],
        gather=lambda _: _PerCheckpoint(measure),
        scores=False,
    )
    return (
        work if rescale is None else dataclasses.replace(work, rescale=rescale)
    )


def _features_and_outputs(result: Any) -> tuple[np.ndarray, np.ndarray]:
    """`[dim, n]` and `[n]`."""
    (sketch,), outputs = result
    return sketch.parts[0].numpy().T, outputs.numpy()


class _PerCheckpoint:
    """Numbers of training examples at each checkpoint, `[checkpoints, c]`.

    Args:
        measure: makes a batch's numbers of its features and outputs.
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
        """Takes the features `[dim, b]` and outputs `[b]` of a batch."""
        features, outputs = values
        if visit.position == len(self._numbers):
            self._numbers.append([])
        self._numbers[visit.position].append(
            self._measure(visit, batch, features.T, tf.constant(outputs))
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
