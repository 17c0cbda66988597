"""What training on an example did to the weights, by segments of a run.

In a segment l of K_l steps at rates of mean η_l, the gradients ∇ℓ_l and the
curvature H_l are taken to be what they are on average. A small change of the
weights at its beginning has become S_l times that at its end, and more weight
ε of the example z in the objective has moved the weights by −ε r_l(z) there:

    S_l = exp(−η_l K_l D_l H_l)
    r_l(z) = (1/n) H_l⁻¹ (1 − S_lᵀ) ∇ℓ_l(z)

with D_l the diagonal by which the optimizer multiplies gradients. So

    score(z, z') = Σ_l ∇ℓ(w_T, z')ᵀ S_L ⋯ S_{l+1} r_l(z)

(Bae et al. 2024, sec. 3). S_l is D^{1/2} exp(−η_l K_l M_l) D^{−1/2} with the
symmetric M_l = D^{1/2} H_l D^{1/2}, which EK-FAC diagonalises. Decoupled weight
decay λ adds λ I to it.

Synopsis:

    filters = SegmentFilters(
        engine, segments, EKFAC(), preconditioner, title="SOURCE"
    )
    filters.fit(verbose=1)
    walk = filters.walk(rows)     # ∇ℓ(w_T, z'), [m, p]
    walk.at(2), walk.at(1)        # what gradients are multiplied by, [m, p]
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.eigenblocks import (
    Eigenblocks,
    fit_eigenblocks,
    mean,
)
from keras_tracin.curvature.layer_blocks import Draws, LayerBlocks
from keras_tracin.curvature.objective import GaussNewton
from keras_tracin.curvature.of_engine import (
    announced,
    check_gradients,
    curvature_of,
)
from keras_tracin.curvature.solvers.ekfac import EKFAC
from keras_tracin.curvature.weighed_blocks import WeighedBlocks
from keras_tracin.data.batches import Batch
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.passes import Sums
from keras_tracin.engine.preconditioner import Preconditioner
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.gradients.flat import size_of
from keras_tracin.runs import Checkpoint, Segment, run_weights

_SMALL = 1e-20  # x for which (1 - exp(-x)) / x is one


class SegmentFilters:
    """The segments' curvatures, and what they do to gradients.

    Args:
        engine: the model, and the training examples of the objective.
        segments: the segments, in order.
        ekfac: how the curvature is fitted.
        preconditioner: the optimizer's diagonals.
        loss: used in place of the compiled loss, as the engine was given it.
        penalty: factor of the weight regularisers beside the mean loss.
        scale: a batch's loss as a multiple of the mean over its examples.
        title: name of the method, for the line that announces long work.
    """

    def __init__(
        self,
        engine: Engine,
        segments: Sequence[Segment],
        ekfac: EKFAC,
        preconditioner: Preconditioner,
        *,
        loss: Any = None,
        penalty: float = 1.0,
        scale: float = 1.0,
        title: str,
    ):
        self._engine, self._segments = engine, segments
        self._ekfac, self._preconditioner = ekfac, preconditioner
        self._loss, self._penalty, self._scale = loss, penalty, scale
        self._title = title
        self._filters: list[_Filter] = []

    @functools.cached_property
    def _operator(self) -> GaussNewton:
        given = self._engine, "gauss_newton", self._loss, self._penalty
        operator = curvature_of(*given)
        assert isinstance(operator, GaussNewton)
        return operator

    @functools.cached_property
    def _layers(self) -> LayerBlocks:
        if self._preconditioner.constant is not None:
            return self._operator.by_layer
        return WeighedBlocks(self._operator, self._engine.layers)

    @functools.cached_property
    def _draws(self) -> Draws:
        return self._layers.draws(self._ekfac.draws, self._ekfac.seed)

    @property
    def bytes_per_vector(self) -> int:
        """The size of a vector `[p]`."""
        return self._operator.size * self._operator.dtype.size

    @property
    def missing_passes(self) -> int:
        """Passes over the data, at every checkpoint, that `fit` has to make."""
        if self._filters:
            return 0
        with self._engine.updated.trainable():
            return self._draws.number + 1

    def fit(self, verbose: int = 0) -> None:
        """Fits the curvature of each segment, unless that is done.

        Args:
            verbose: 0 for silence; else long work is announced.
        """
        if self._filters:
            return
        engine, count = self._engine, len(self._checkpoints)
        what = f"EK-FAC of {len(self._segments)} segments, {count} checkpoints"
        filters = []
        with (
            engine.updated.trainable(),
            run_weights(engine.model) as load,
            self._explaining(),
            announced(what, self._title, engine, self._operator, verbose),
        ):
            for segment in self._segments:
                filters.append(self._fit(segment, load))
        self._filters = filters

    def walk(self, rows: tf.Tensor) -> Backwards:
        """Goes back through training with gradients at its end.

        Args:
            rows: gradients ∇ℓ(w_T, z'), `[m, p]`.
        """
        assert self._filters
        return Backwards(self._filters, rows, self._operator.dtype)

    @property
    def _checkpoints(self) -> list[Checkpoint]:
        return [own for part in self._segments for own in part.checkpoints]

    def _fit(self, segment: Segment, load: Callable) -> _Filter:
        layers, operator = self._layers, self._operator
        constant = self._preconditioner.constant

        def visits() -> Iterator[Draws]:
            for position, checkpoint in enumerate(segment.checkpoints):
                load(checkpoint)
                seed = self._draws.seed + position
                yield dataclasses.replace(self._draws, seed=seed)

        def diagonals() -> Iterator[list[tf.Tensor]]:
            for checkpoint in segment.checkpoints:
                load(checkpoint)
                pair = [layers.penalty_diagonal()]
                if constant is None:
                    groups = (operator.variables,)
                    (parts,) = self._preconditioner.at(checkpoint, groups)
                    pair.append(tf.concat(parts, axis=0))
                yield pair

        penalties, *metric = mean(diagonals())
        if constant is None:
            assert isinstance(layers, WeighedBlocks)
            root, factor = layers.take(*metric), 1.0
        else:
            root, factor = tf.constant(constant**0.5, operator.dtype), constant
        added = tf.square(root) * penalties + self._decay()
        fitted = fit_eigenblocks(layers, visits).scaled(factor, added)
        return _Filter(
            fitted,
            root,
            segment.rate_sum * self._scale,
            layers.num_examples,
        )

    def _decay(self) -> tf.Tensor:
        """Decoupled weight decay, `[p]`, per unit of the learning rate."""
        operator, optimizer = self._operator, self._preconditioner.optimizer
        decay = optimizer.weight_decay or 0.0
        rates = [
            decay * (decay > 0 and optimizer._use_weight_decay(variable))
            for variable in operator.variables
        ]
        sizes = [size_of(variable) for variable in operator.variables]
        entries = np.repeat(rates, sizes) / self._scale
        return tf.constant(entries, operator.dtype)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        """For a `with` block, names examples that break linear algebra."""
        try:
            yield
        except np.linalg.LinAlgError:
            weights: Weights = dict.fromkeys(self._checkpoints, 1.0)
            check_gradients(self._title, self._engine, weights)
            raise


@dataclasses.dataclass(frozen=True, eq=False)
class _Filter:
    """What a segment does to gradients.

    Attributes:
        curvature: M = D^{1/2} H D^{1/2}, and the decay of weights.
        root: D^{1/2}, `[p]` or a scalar.
        time: η K, the sum of the learning rates.
        num_examples: n.
    """

    curvature: Eigenblocks
    root: tf.Tensor
    time: float
    num_examples: int

    def apply(self, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Both sides of the segment for each row of `[m, p]`.

        Args:
            rows: gradients at its end.

        Returns:
            What training examples' mean gradients in the segment are
            multiplied by, and the rows at its beginning.
        """
        time = self.time

        def moved(values: tf.Tensor) -> tf.Tensor:
            """(1 − exp(−ηK h)) / h, which is ηK for h = 0."""
            x = time * values
            has_curvature = abs(x) > _SMALL
            safe = tf.where(has_curvature, x, 1)
            ratio = tf.where(has_curvature, -tf.math.expm1(-safe) / safe, 1)
            return time * ratio

        def kept(values: tf.Tensor) -> tf.Tensor:
            return tf.exp(-time * values)

        scaled = rows * self.root
        movement, before = self.curvature.apply(scaled, moved, kept)
        movement *= self.root / self.num_examples
        return movement, before / self.root


class Backwards:
    """Gradients at the end of training, taken back segment by segment.

    Args:
        filters: the segments.
        rows: gradients at the end of the last one, `[m, p]`.
        dtype: the type to compute in.
    """

    def __init__(
        self, filters: Sequence[_Filter], rows: tf.Tensor, dtype: tf.DType
    ):
        self._filters, self._dtype = filters, rows.dtype
        self._rows = self._vectors = tf.cast(rows, dtype)
        self._segment = len(filters)

    def at(self, segment: int) -> tf.Tensor:
        """What gradients of training examples are multiplied by, `[m, p]`.

        Args:
            segment: number of the segment; never above that of a call before.
        """
        assert segment <= self._segment
        while self._segment > segment:
            self._segment -= 1
            own = self._filters[self._segment]
            self._vectors, self._rows = own.apply(self._rows)
        return tf.cast(self._vectors, self._dtype)


class OwnScores(Sums):
    """Sums over checkpoints of training examples' scores for themselves.

    Args:
        chunk: the training examples.
        filters: the segments, fitted.
        places: the segment of each checkpoint. The first one that is visited
            is the end of training.
    """

    def __init__(
        self,
        chunk: Chunk,
        filters: SegmentFilters,
        places: dict[Checkpoint, int],
    ):
        super().__init__(chunk)
        self._filters, self._places = filters, places
        self._walks: dict[int, Backwards] = {}

    def add(
        self, visit: Visit, batch: Batch, rows: slice, values: np.ndarray
    ) -> None:
        """Adds the scores of gradients `[p, b]` to the columns `rows`."""
        gradients = tf.constant(values.T)
        if visit.position == 0:
            at_end = gradients / visit.rate
            self._walks[rows.start] = self._filters.walk(at_end)
        assert visit.checkpoint is not None
        vectors = self._walks[rows.start].at(self._places[visit.checkpoint])
        products = tf.reduce_sum(vectors * gradients, axis=1).numpy()
        super().add(visit, batch, rows, products)
