"""Training examples' own products with the inverse of a curvature.

Self-influence is `gᵀ(H + λI)⁻¹g` for the gradient g of an example; relative
influence (RelatIF; Barshan et al. 2020, sec. 3) divides scores by its square
root, or by the length of `(H + λI)⁻¹g`, at each checkpoint.

Synopsis:

    lengths = SolvedLengths(engine, inverses, "loss")
    lengths.measure(checkpoints)
    def gather(chunk):
        return lengths.gather(chunk, engine.train)
    scores = Pass(title, step, weights, gather=gather)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.block_moments import weighted_squares
from keras_tracin.curvature.inverses import Inverses
from keras_tracin.curvature.kronecker import Basis, LayerCurvature
from keras_tracin.curvature.solvers.ekfac import EKFACInverse
from keras_tracin.curvature.whitening import pieces_of
from keras_tracin.data.batches import Batch, Examples
from keras_tracin.engine.call import Call
from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.metric import to_unit_size
from keras_tracin.engine.passes import Pass, Sums
from keras_tracin.engine.per_example import PerExample
from keras_tracin.engine.steps import RATE, GradientFunctions, scaled_sum
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.results import ScoreColumns
from keras_tracin.runs import Checkpoint


def solved_pass(
    engine: Engine,
    inverses: Inverses,
    weights: Weights,
    kind: str | None = None,
) -> Pass:
    """The pass that measures each training example by the inverse.

    With EK-FAC it stays with the factors of gradients, else whole gradients
    are solved for.

    Args:
        engine: the model and its training examples.
        inverses: the inverse at each checkpoint.
        weights: checkpoints of equal weight, to take the mean over.
        kind: "loss" for `√(gᵀ(H + λI)⁻¹g)`, "parameters" for
            `‖(H + λI)⁻¹g‖`, None for `gᵀ(H + λI)⁻¹g`.
    """
    layers = inverses.by_layer
    if layers is not None:
        return _pass_by_layer(engine, inverses, layers, weights, kind)
    current: Checkpoint | None = None

    def arrive(visit: Visit) -> None:
        nonlocal current
        current = visit.checkpoint

    def measure(rows: tf.Tensor) -> np.ndarray:
        if kind is None:
            # Rows are gradients divided by the number of checkpoints.
            solved = inverses.solve(current, rows)
            products = tf.reduce_sum(rows * solved, axis=1)
            return len(weights) * products.numpy()
        # The squares of small gradients would be zero.
        sizes = tf.reduce_max(tf.abs(rows), axis=1)
        rows = tf.math.divide_no_nan(rows, sizes[:, tf.newaxis])
        solved = inverses.solve(current, rows)
        if kind == "parameters":
            return (sizes * tf.norm(solved, axis=1)).numpy()
        products = tf.reduce_sum(rows * solved, axis=1)
        return (sizes * tf.sqrt(tf.maximum(products, 0))).numpy()

    return Pass(
        inverses.title,
        engine.train_steps.rows,
        weights,
        prepare=arrive,
        finish=measure,
        compared=lambda rows: np.linalg.norm(rows.numpy(), axis=-1),
    )


def _pass_by_layer(
    engine: Engine,
    inverses: Inverses,
    layers: LayerCurvature,
    weights: Weights,
    kind: str | None,
) -> Pass:
    """The same, by the squares of gradients in EK-FAC's basis."""

    def arrive(visit: Visit) -> tuple[tuple[Basis, ...], tuple]:
        inverse = inverses.at(visit.checkpoint)
        assert isinstance(inverse, EKFACInverse)
        own = inverse.reciprocals
        if kind == "parameters":
            own = tuple(map(tf.square, own))
        return inverse.bases, own

    def measure(result: tuple[tf.Tensor, tf.Tensor]) -> np.ndarray:
        sizes, squares = (part.numpy() for part in result)
        if kind is None:
            return np.square(sizes) * squares
        return sizes * np.sqrt(np.maximum(squares, 0))

    return Pass(
        inverses.title,
        _squares_by_layer(engine.train_steps, layers),
        weights,
        prepare=arrive,
        finish=measure,
    )


def _squares_by_layer(
    functions: GradientFunctions, layers: LayerCurvature
) -> Callable:
    """`(data, (bases, weights), rate) -> [n], rate · [n]`.

    The largest number of each gradient, and the weighted sum of the squares of
    the gradient divided by it.
    """
    blocks, dtype = layers.blocks, layers.dtype

    def step(data, inverse, rate):
        captured = functions.capturing.capture(data)
        own, sizes = to_unit_size(captured.factors)
        pieces = zip(blocks, pieces_of(blocks, own), *inverse, strict=True)
        squares = scaled_sum(rate, [weighted_squares(*own) for own in pieces])
        return sizes, squares

    def make():
        bases = tuple(
            tuple(tf.TensorSpec([n, n], dtype) for n in block.sides)
            for block in blocks
        )
        weights = tuple(
            tf.TensorSpec([block.rows, block.columns], dtype)
            for block in blocks
        )
        return functions.traced(step, (bases, weights), RATE, axis=-1)

    return functions.kept("squares by layer", make)


class SolvedLengths:
    """Divisors of relative influence, computed once for each checkpoint.

    Args:
        engine: the model and all its training examples.
        inverses: the inverse at each checkpoint.
        kind: "loss" for `√(gᵀ(H + λI)⁻¹g)`, "parameters" for `‖(H + λI)⁻¹g‖`.
    """

    def __init__(self, engine: Engine, inverses: Inverses, kind: str):
        self._engine, self._inverses, self._kind = engine, inverses, kind
        self._lengths: dict[Checkpoint | None, PerExample] = {}

    def measure(
        self, checkpoints: Iterable[Checkpoint | None], verbose: int = 0
    ) -> None:
        """Computes the lengths at these checkpoints, unless that is done."""
        engine = self._engine
        for checkpoint in checkpoints:
            if checkpoint in self._lengths:
                continue
            columns, weights = ScoreColumns(), {checkpoint: 1.0}
            norms = solved_pass(engine, self._inverses, weights, self._kind)
            sweep(engine, norms, Sink(columns.add), Call(verbose=verbose))
            numbers = PerExample(engine.train, columns.ids, columns.scores)
            self._lengths[checkpoint] = numbers

    def gather(self, chunk: Chunk, train: Examples) -> Sums:
        """Sums over checkpoints of a chunk's scores divided by the lengths.

        Args:
            chunk: the training examples.
            train: the data that they were read from.
        """
        lengths = {
            checkpoint: numbers.of(chunk, train)
            for checkpoint, numbers in self._lengths.items()
        }
        return _Quotients(chunk, lengths)


class _Quotients(Sums):
    """Sums over checkpoints of scores divided by lengths.

    Args:
        chunk: the training examples.
        lengths: their lengths at each checkpoint, `[c]`.
    """

    def __init__(
        self, chunk: Chunk, lengths: Mapping[Checkpoint | None, np.ndarray]
    ):
        super().__init__(chunk)
        self._lengths = lengths

    def add(
        self, visit: Visit, batch: Batch, rows: slice, values: np.ndarray
    ) -> None:
        """Divides scores `[..., b]` and adds them to the columns `rows`."""
        lengths = self._lengths[visit.checkpoint][rows]
        quotients = np.divide(
            values, lengths, out=np.zeros_like(values), where=lengths > 0
        )
        super().add(visit, batch, rows, quotients)
