"""Gradients times a root of an inverse curvature, for sketches of them.

The inner product of such gradients is that of plain ones under the inverse,

    ((G + λI)^(-1/2) g) · ((G + λI)^(-1/2) g') = gᵀ (G + λI)⁻¹ g'.

Both sides have the same form, so that what is kept of one is what counts in the
other. They are left in the basis of EK-FAC: products are the
same in any. An eigenvalue below zero, as a regulariser may have, gives the two
sides other signs.

Synopsis:

    whitening = Whitening.of([inverse])     # EK-FAC's, at each checkpoint
    train = Whitened(whitening, TensorSketch(4096))
    queries = Whitened(whitening, TensorSketch(4096), of_queries=True)
    rows = train.sketch(captured.factors, position=0)       # [n, 4096]
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_tracin.curvature.block_moments import whitened
from keras_tracin.curvature.kronecker import Basis, Block
from keras_tracin.curvature.solvers.ekfac import EKFACInverse
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
    TableFactors,
)
from keras_tracin.projection import Projection

_NUMBERS = 2**24  # of whole gradients that are held at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Whitening:
    """EK-FAC's inverses at several weights, held side by side.

    Attributes:
        blocks: the blocks of a row, the same at all weights.
        bases: for each block its bases `[c, i, i]` and `[c, o, o]`, of sides
            that have one.
        eigenvalues: of each block, `[c, i, o]`, those that are inverted.
    """

    blocks: tuple[Block, ...]
    bases: tuple[Basis, ...]
    eigenvalues: tuple[tf.Tensor, ...]

    @classmethod
    def of(cls, inverses: Sequence[EKFACInverse]) -> Whitening:
        """The inverses, one for each position."""
        return cls(
            inverses[0].blocks,
            tf.nest.map_structure(
                lambda *sides: tf.stack(sides), *(i.bases for i in inverses)
            ),
            tuple(
                map(
                    tf.stack,
                    zip(*(i.eigenvalues for i in inverses), strict=True),
                )
            ),
        )

    def at(self, position: tf.Tensor | int) -> EKFACInverse:
        """The inverse at a position."""
        own = functools.partial(tf.gather, indices=position)
        return EKFACInverse(
            self.blocks,
            tf.nest.map_structure(own, self.bases),
            tuple(map(own, self.eigenvalues)),
        )

    @property
    def size(self) -> int:
        """Number of entries of a gradient."""
        return sum(block.size for block in self.blocks)


@dataclasses.dataclass(frozen=True, eq=False)
class Whitened:
    """Sketches of whitened gradients: a projection itself.

    Attributes:
        whitening: the inverses.
        projection: sketches what is whitened.
        of_queries: whether to multiply by the signs of the eigenvalues, which
            one side of a product has.
    """

    whitening: Whitening
    projection: Projection
    of_queries: bool = False

    @property
    def dim(self) -> int:
        """Length of a sketch."""
        return self.projection.dim

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Sketches `[n, dim]` of `n` examples' gradients.

        Args:
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """
        inverse = self.whitening.at(position)
        scales = [self._scale(values) for values in inverse.eigenvalues]

        def some(factors: Sequence[Factors]) -> tf.Tensor:
            pieces = pieces_of(inverse.blocks, factors)
            white = [
                whitened(block, piece, basis, scale)
                for block, piece, basis, scale in zip(
                    inverse.blocks, pieces, inverse.bases, scales, strict=True
                )
            ]
            return self.projection.sketch(white, position)

        size = max(1, _NUMBERS // self.whitening.size)
        return in_turn(some, factors, size, self.dim)

    def _scale(self, values: tf.Tensor) -> tf.Tensor:
        """One over the root of each eigenvalue; zero for zero."""
        roots = tf.sqrt(tf.abs(values))
        signs = tf.sign(values) if self.of_queries else tf.ones_like(values)
        return tf.math.divide_no_nan(signs, roots)


def pieces_of(
    blocks: Sequence[Block], factors: Sequence[Factors]
) -> list[Factors]:
    """The gradients in each block.

    Factors are kept where they are those of a block; others are made entries.

    Args:
        blocks: the blocks of a row.
        factors: gradients, group by group.
    """
    pieces: list[Factors] = []
    for group in factors:
        if isinstance(group, DenseGradients):
            pieces += [DenseGradients((part,)) for part in group.parts]
        else:
            pieces.append(group)
    if len(pieces) == len(blocks) and all(map(_is_of, pieces, blocks)):
        return pieces
    rows = flat.rows(factors)
    return [
        DenseGradients((rows[:, b.start : b.start + b.size],)) for b in blocks
    ]


def _is_of(piece: Factors, block: Block) -> bool:
    if isinstance(piece, DenseGradients):
        return piece.parts[0].shape[1] == block.size
    if isinstance(piece, LookupFactors):
        sides = piece.vocabulary, piece.grads.shape[-1]
    elif isinstance(piece, OuterFactors):
        _, i, o = piece.sizes
        sides = i + piece.bias, o
    elif isinstance(piece, TableFactors):
        _, i, o = piece.outer.sizes
        sides = i, o
    else:
        return False
    axes = getattr(piece, "axes", None)
    return sides == (block.rows, block.columns) and axes == block.axes


def in_turn(
    sketch: Callable[[Sequence[Factors]], tf.Tensor],
    factors: Sequence[Factors],
    size: int,
    dim: int,
) -> tf.Tensor:
    """Sketches `[n, dim]` of which so many are made at a time.

    Args:
        sketch: makes the sketches of some examples.
        factors: the gradients of `n` examples.
        size: number of examples that are sketched at a time.
        dim: length of a sketch.
    """
    leaves = tf.nest.flatten(factors)
    count = tf.shape(leaves[0])[0]
    turns = tf.maximum(1, -(-count // size))
    share = -(-count // turns)  # of equal size: zeros fill up the last

    def cut(leaf: tf.Tensor) -> tf.Tensor:
        rest = [[0, 0] for _ in leaf.shape[1:]]
        padding: list = [[0, turns * share - count], *rest]
        shape = tf.concat([[turns, share], tf.shape(leaf)[1:]], axis=0)
        return tf.ensure_shape(
            tf.reshape(tf.pad(leaf, padding), shape),
            [None, None, *leaf.shape[1:]],
        )

    sketches = tf.map_fn(
        lambda some: sketch(tf.nest.pack_sequence_as(factors, some)),
        [cut(leaf) for leaf in leaves],
        parallel_iterations=1,
        # Ids come before gradients.
        fn_output_signature=tf.TensorSpec([None, dim], leaves[-1].dtype),
    )
    return tf.reshape(sketches, [-1, dim])[:count]
