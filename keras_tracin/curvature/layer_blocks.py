"""The Gauss-Newton matrix of a network's layers, from pseudo-gradients.

Passes over the training data sum what Kronecker-factored approximations are
made of. They are compiled once and serve at any weights the model has.

Synopsis:

    layers = LayerBlocks(gauss_newton, layers=None)
    draws = layers.draws("auto", seed=0)
    layers.moments(draws)                # A, B of each block
    layers.mean_squares(bases, draws)    # eigenvalues in these bases
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.block_moments import (
    second_moments,
    sum_of_squares,
)
from keras_tracin.curvature.kronecker import (
    Basis,
    Block,
    cut,
)
from keras_tracin.curvature.mean_loss import MeanLossCurvature
from keras_tracin.curvature.pseudo_gradients import (
    MOST_OUTPUTS,
    is_out_of_reach,
    pseudo_loss,
)
from keras_tracin.engine.footprint import footprint
from keras_tracin.gradients.capture import Captured, capture
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.factors import Factors
from keras_tracin.gradients.placement import Placement, place

_ENOUGH = 5_000  # pseudo-gradients
_MOST_DRAWS = 16  # for each example
_BATCH = 256
# Bases of many examples take no more than these, or 1.5 times the width of a
# layer; and of inputs with many positions, fewer.
_WIDTHS = 1.5
_POSITIONS, _FEWEST_EXAMPLES = 64, 512
_MOST_POSITIONS = 8  # of a sequence, each of which serves as an example
_DRAW = tf.TensorSpec([4], tf.int32)


class LayerBlocks:
    """A `LayerCurvature` of a model and its training data.

    Each sum takes a pass over the data for each draw of pseudo-gradients.

    Args:
        curvature: the Gauss-Newton matrix.
        layers: names or layers that its variables are restricted to.

    Attributes:
        num_examples: number of training examples, once `mean_squares` has
            read them.
    """

    def __init__(self, curvature: MeanLossCurvature, layers: Any):
        self._curvature = curvature
        self._layers = layers
        self.num_examples = 0
        # Their widths and numbers of positions, once traced.
        self._outputs: list[tuple[int, int]] = []

    @property
    def _widths(self) -> list[int]:
        """The number of entries of each output, at a position."""
        return [width for width, _ in self._outputs]

    @property
    def dtype(self) -> tf.DType:
        """The type of vectors."""
        return self._curvature.dtype

    def draws(self, number: int | str, seed: int) -> Draws:
        """Pseudo-gradients for every example.

        Args:
            number: how many; or `"exact"`, one for each output; or `"auto"`,
                as many as make 5,000 of all examples, or exact ones if these
                are no more.
            seed: of random draws.

        Raises:
            ValueError: if `number` is `"exact"` and there is more than one
                output, or one with more than 16 entries.
        """
        self._captured.get_concrete_function()
        widths = self._widths
        exact = len(widths) == 1 and widths[0] <= _MOST_DRAWS
        if number == "exact" and not exact:
            raise ValueError(
                "`EKFAC(draws='exact')` takes a pass for each entry of the "
                f"model's only output, of which there may be {_MOST_DRAWS}. "
                f"Received a model whose outputs have {widths} entries. Leave "
                "`draws=` out."
            )
        if isinstance(number, int):
            return Draws(number, seed, exact=False)
        count = self._curvature.examples.expected_size or _ENOUGH
        enough = min(max(1, math.ceil(_ENOUGH / count)), _MOST_DRAWS)
        if exact and (number == "exact" or widths[0] <= enough):
            return Draws(widths[0], seed, exact=True)
        return Draws(enough, seed, exact=False)

    def moments(self, draws: Draws) -> list[tuple[tf.Tensor, ...]]:
        """A `[i, i]` and B `[o, o]` of each block, summed over all draws.

        Of many examples, over every second one, every third, and so on.

        Raises:
            ValueError: if the loss's curvature by the outputs is of no known
                kind, and cannot be written out.
        """
        few, every = self._for_bases(draws)
        moments = self._sum(self._moments, few, every=every)[0]
        if not all(np.isfinite(m).all() for m in tf.nest.flatten(moments)):
            self._check_curvature()
        return moments

    def mean_squares(
        self, bases: Sequence[Basis], draws: Draws
    ) -> list[tf.Tensor]:
        """Mean squares of the gradients in the blocks' bases, `[i, o]` each.

        Args:
            bases: one for each block.
            draws: those of `moments`.

        Raises:
            ValueError: as `moments`.
        """
        sums, count = self._sum(self._squares, draws, bases)
        self.num_examples = count // draws.number
        if not all(np.isfinite(squares).all() for squares in sums):
            self._check_curvature()
        return [squares / count for squares in sums]

    def penalty_diagonal(self) -> tf.Tensor:
        """The diagonal `[p]` of the weight regularisers' curvature."""
        return self._curvature.penalty_diagonal()

    def _for_bases(self, draws: Draws) -> tuple[Draws, int]:
        """The draws that bases are made of, and the distance of examples.

        Of each example as few as will do, since inputs are the same in all.
        """
        count = self._curvature.examples.expected_size
        if draws.exact or not count:
            return draws, 1
        sides = [side for block in self.blocks for side in block.sides]
        enough = max(_ENOUGH, _WIDTHS * max(sides, default=0))
        positions = max(positions for _, positions in self._outputs)
        enough /= min(positions, _MOST_POSITIONS)
        number = min(draws.number, math.ceil(enough / count))
        every = max(1, int(number * count / enough))
        return dataclasses.replace(draws, number=number), every

    def _sum(
        self, step: Callable, draws: Draws, *args, every: int = 1
    ) -> tuple[Any, int]:
        """Sums a step over examples and draws; with the number of examples.

        An example counts once for each draw.
        """
        total: Any = None
        count = 0
        for draw in range(draws.number):
            batches = self._curvature.held.spread(every, self._batch_size)
            for at, data in enumerate(batches):
                place = [draw, at, draws.seed, draws.exact]
                terms = step(data, tf.constant(place, tf.int32), *args)
                total = (
                    terms
                    if total is None
                    else tf.nest.map_structure(tf.add, total, terms)
                )
                count += len(tf.nest.flatten(data)[0])
        return total, count

    @functools.cached_property
    def _batch_size(self) -> int:
        """As many as memory allows of a number that random draws go by."""
        return min(_BATCH, self._curvature.batch_size(footprint(self._squares)))

    def _check_curvature(self) -> None:
        """Raises ValueError if the loss's curvature is out of reach."""
        curvature = self._curvature

        def lost(data):
            x, y, *weight = data
            y_pred = curvature.see_outputs(curvature.model(x, training=False))
            weights = weight[0] if weight else None
            return is_out_of_reach(curvature.loss, y, y_pred, weights)

        step = self._compile(lambda data, draw: lost(data))
        draw = tf.zeros([4], tf.int32)
        for data in curvature.held.batches(self._batch_size):
            if step(data, draw):
                raise ValueError(
                    "EK-FAC needs the loss's curvature by the outputs of each "
                    "example: that of a softmax cross-entropy, one without "
                    "mixed derivatives, or any other by up to "
                    f"{MOST_OUTPUTS} outputs at each position. Received a "
                    f"loss of another kind by outputs of {self._widths} "
                    "entries, or one that mixes positions, outputs or "
                    "examples. Use curvature='gauss_newton' with `Arnoldi()` "
                    "or `CG()`."
                )

    @functools.cached_property
    def _captured(self) -> Any:
        """`(data, draw) -> Captured`, the pseudo-gradients of a batch."""
        curvature = self._curvature

        def captured(data, draw):
            x, y, *weight = data

            def surrogate(y, y_pred, weight):
                y_pred = curvature.see_outputs(y_pred)
                return pseudo_loss(
                    curvature.loss, y, y_pred, weight, draw, self._outputs
                )

            batch = (x, y, weight[0] if weight else None)
            return capture(curvature.model, surrogate, batch, self._placement)

        return self._compile(captured)

    @functools.cached_property
    def _placement(self) -> Placement:
        # Without the surrogate: its trace would count a call too many.
        curvature = self._curvature
        return place(curvature.model, curvature.spec[0], self._layers)

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

    def _cut(self, captured: Captured) -> list[tuple[Block, Factors]]:
        """The blocks of pseudo-gradients, with the factors of each."""
        variables = self._placement.variables
        groups = [
            [variables[at] for at in group] for group in captured.positions
        ]
        self._check_order(v for group in groups for v in group)
        return cut(captured.factors, groups)

    def _pairs(self, data, draw) -> list[tuple[Block, Factors]]:
        """The blocks, with the pseudo-gradients of a batch in each."""
        return self._cut(self._captured(data, draw))

    @functools.cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of a row, in order."""
        captured = self._captured.get_concrete_function().structured_outputs
        return tuple(block for block, _ in self._cut(captured))

    @functools.cached_property
    def _moments(self) -> Callable:
        def moments(data, draw):
            pairs = self._pairs(data, draw)
            return [
                second_moments(block, part, self._share(part))
                for block, part in pairs
            ]

        return self._compile(moments)

    def _share(self, factors: Factors) -> float:
        """The share of the examples whose inputs a basis is made of."""
        count = self._curvature.examples.expected_size
        positions = getattr(factors, "sizes", (1,))[0]
        if not count or not positions:
            return 1.0
        return min(1.0, max(_POSITIONS / positions, _FEWEST_EXAMPLES / count))

    @functools.cached_property
    def _squares(self) -> Callable:
        def squares(data, draw, bases):
            pairs = self._pairs(data, draw)
            return [
                sum_of_squares(block, part, basis)
                for (block, part), basis in zip(pairs, bases, strict=True)
            ]

        bases = [
            tuple(tf.TensorSpec([n, n], self.dtype) for n in block.sides)
            for block in self.blocks
        ]
        return self._compile(squares, bases)

    def _compile(self, step: Callable, *more_specs) -> Callable:
        """Compiles a step; an open batch size tells layers the examples."""
        return compile_step(step, (self._curvature.spec, _DRAW, *more_specs))


@dataclasses.dataclass(frozen=True)
class Draws:
    """Pseudo-gradients of every example.

    Attributes:
        number: how many.
        seed: of random ones.
        exact: whether they are one for each output, so that their second
            moments are the curvature exactly.
    """

    number: int
    seed: int
    exact: bool
