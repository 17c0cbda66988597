"""The Gauss-Newton matrix between the roots of a diagonal: √D H √D.

It is the second moment of pseudo-gradients times √D. For these to stay
factors, D is rows × columns in the block of a kernel or a table: of the outer
product that is nearest to it in logarithms, a bias among the rows. Other blocks
keep their D.

Synopsis:

    layers = WeighedBlocks(gauss_newton, layers=None)
    root = layers.take(diagonal)     # √D as the blocks have it, [p]
    layers.moments(draws)            # of √D ∇ℓ
"""

from __future__ import annotations

import functools
from typing import Any

import tensorflow as tf

from keras_tracin.curvature.kronecker import Block
from keras_tracin.curvature.layer_blocks import LayerBlocks
from keras_tracin.engine.metric import (
    Root,
    has_sides,
    nearest_sides,
    weigh,
)
from keras_tracin.gradients.factors import (
    Factors,
    OuterFactors,
    with_ones,
)


class WeighedBlocks(LayerBlocks):
    """`LayerBlocks` of √D H √D, for one D after another.

    Penalties are those of `LayerBlocks`, without D.
    """

    def take(self, diagonal: tf.Tensor) -> tf.Tensor:
        """Takes another D.

        Args:
            diagonal: D, `[p]`, as a row is laid out.

        Returns:
            √D as it is multiplied, `[p]`.
        """
        entries = []
        for block, variables in zip(self.blocks, self._roots, strict=True):
            part = diagonal[block.start : block.start + block.size]
            part = tf.cast(part, self.dtype)
            if len(variables) == 1:
                root: Root = (tf.sqrt(part),)
                entries.append(root[0])
            else:
                rows, columns = root = nearest_sides(block.matrices(part)[0])
                outer = rows[:, tf.newaxis] * columns
                entries.append(block.entries(outer[tf.newaxis])[0])
            for variable, value in zip(variables, root, strict=True):
                variable.assign(value)
        return tf.concat(entries, axis=0)

    @functools.cached_property
    def _roots(self) -> list[tuple[tf.Variable, ...]]:
        """√D of each block: rows and columns, or all entries."""
        captured = self._captured.get_concrete_function().structured_outputs
        return [
            tuple(
                tf.Variable(tf.ones([size], self.dtype), trainable=False)
                for size in _sizes(block, factors)
            )
            for block, factors in self._cut(captured)
        ]

    def _pairs(self, data: Any, draw: tf.Tensor) -> list[tuple[Block, Factors]]:
        pairs = super()._pairs(data, draw)
        return [
            (block, _weighed(factors, root))
            for (block, factors), root in zip(pairs, self._roots, strict=True)
        ]


def _sizes(block: Block, factors: Factors) -> tuple[int, ...]:
    if has_sides(factors):
        return block.rows, block.columns
    return (block.size,)


def _weighed(factors: Factors, root: tuple[tf.Variable, ...]) -> Factors:
    if isinstance(factors, OuterFactors):
        factors = with_ones(factors)
    return weigh(factors, tuple(variable.value() for variable in root))
