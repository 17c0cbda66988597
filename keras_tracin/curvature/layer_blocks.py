"""The Gauss-Newton matrix of a network's layers, from pseudo-gradients.

Passes over the training data sum what Kronecker-factored approximations are
made of. They are compiled once and serve at any weights the model has.

Synopsis:

    layers = LayerBlocks(gauss_newton, layers=None)
    layers.moments()                # A, B of each block
    layers.mean_squares(bases)      # eigenvalues in these bases
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from keras_tracin.curvature.kronecker import (
    Basis,
    Block,
    cut,
    second_moments,
    sum_of_squares,
)
from keras_tracin.curvature.mean_loss import MeanLossCurvature
from keras_tracin.curvature.pseudo_gradients import EACH_OUTPUT, pseudo_loss
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.placement import place

_ENOUGH = 10_000  # pseudo-gradients, where outputs are many
_BATCH = 256
_SEED = tf.TensorSpec([2], tf.int32)


class LayerBlocks:
    """A `LayerCurvature` of a model and its training data.

    Each sum takes a pass over the data for each output of the model (up to
    16; beyond, enough passes for 10,000 pseudo-gradients).

    Args:
        curvature: the Gauss-Newton matrix.
        layers: names or layers that its variables are restricted to.
    """

    def __init__(self, curvature: MeanLossCurvature, layers: Any):
        self._curvature = curvature
        self._layers = layers

    @property
    def dtype(self) -> tf.DType:
        """The type of vectors."""
        return self._curvature.dtype

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of a row, in order.

        Raises:
            ValueError: if the model has more than 512 outputs.
        """
        return self._trace.blocks

    def moments(self) -> list[tuple[tf.Tensor, ...]]:
        """A `[i, i]` and B `[o, o]` of each block, summed over all draws."""
        return self._sum(self._trace.moments)[0]

    def mean_squares(self, bases: Sequence[Basis]) -> list[tf.Tensor]:
        """Mean squares of the gradients in the blocks' bases, `[i, o]` each.

        Args:
            bases: one for each block.
        """
        sums, count = self._sum(self._squares, bases)
        return [squares / count for squares in sums]

    def penalty_diagonal(self) -> tf.Tensor:
        """The diagonal `[p]` of the weight regularisers' curvature."""
        return self._curvature.penalty_diagonal()

    def _sum(self, step: Callable, *args) -> tuple[Any, int]:
        """Sums a step over all batches and draws; with the number of examples.

        An example counts once for each draw.
        """
        total: Any = None
        count = 0
        for draw in range(self._trace.draws):
            for at, data in enumerate(self._curvature.held.batches(_BATCH)):
                seed = tf.constant([draw, at], tf.int32)
                terms = step(data, seed, *args)
                total = (
                    terms
                    if total is None
                    else tf.nest.map_structure(tf.add, total, terms)
                )
                count += len(tf.nest.flatten(data)[0])
        return total, count

    def _pairs(
        self, data: Any, seed: tf.Tensor, outputs: list[int]
    ) -> list[tuple[Block, Factors]]:
        """The blocks of a batch's pseudo-gradients.

        Args:
            data: `(x, y[, sample_weight])`.
            seed: `[2]`, of the draw and of the batch.
            outputs: takes the width of each of the model's outputs.
        """
        model, loss = self._curvature.model, self._curvature.loss
        x, y, *weight = data

        def surrogate(y, y_pred, weight):
            y_pred = self._curvature.see_outputs(y_pred)
            return pseudo_loss(loss, y, y_pred, weight, seed, outputs)

        batch = (x, y, weight[0] if weight else None)
        # Without the surrogate: its trace would count a call too many.
        placement = place(model, x, self._layers)
        captured = capture(model, surrogate, batch, placement)
        groups = [
            [placement.variables[at] for at in group]
            for group in captured.positions
        ]
        self._check_order(v for group in groups for v in group)
        return cut(captured.factors, groups)

    def _check_order(self, variables) -> None:
        """Refuses blocks that are not those of the operator's rows."""
        received = [variable.path for variable in variables]
        expected = [variable.path for variable in self._curvature.variables]
        if received != expected:
            raise ValueError(
                "EK-FAC captures the gradients of other variables than the "
                f"loss has. Received: {received}; expected: {expected}. Use "
                "curvature='gauss_newton' with `Arnoldi()` or `CG()`."
            )

    @functools.cached_property
    def _trace(self) -> _Trace:
        outputs: list[int] = []
        blocks: list[Block] = []

        def moments(data, seed):
            pairs = self._pairs(data, seed, outputs)
            blocks[:] = [block for block, _ in pairs]
            return [second_moments(block, part) for block, part in pairs]

        curvature = self._curvature
        step = tf.function(
            moments,
            autograph=False,
            input_signature=(curvature.spec, _SEED),
        )
        step.get_concrete_function()
        draws = max(outputs)
        if draws > EACH_OUTPUT or len(outputs) > 1:
            count = curvature.examples.expected_size or _ENOUGH
            draws = min(max(1, math.ceil(_ENOUGH / count)), EACH_OUTPUT)
        return _Trace(tuple(blocks), draws, step)

    @functools.cached_property
    def _squares(self) -> Callable:
        def squares(data, seed, bases):
            return [
                sum_of_squares(block, part, basis)
                for (block, part), basis in zip(
                    self._pairs(data, seed, []), bases, strict=True
                )
            ]

        bases = [
            tuple(
                tf.TensorSpec([side, side], self.dtype)
                for side in (block.rows, block.columns)
                if block.kronecker
            )
            for block in self.blocks
        ]
        # An open batch size: layers without a rule tell examples by it.
        return tf.function(
            squares,
            autograph=False,
            input_signature=(self._curvature.spec, _SEED, bases),
        )


@dataclasses.dataclass(frozen=True)
class _Trace:
    """The first compiled step, and what its trace told.

    Attributes:
        blocks: the blocks of a row.
        draws: number of pseudo-gradients for each example.
        moments: `(data, seed) -> [(A, B), ...]` of a batch.
    """

    blocks: tuple[Block, ...]
    draws: int
    moments: Callable
