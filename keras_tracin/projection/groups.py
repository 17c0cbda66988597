"""The groups of variables of a model, each with random numbers of its own.

Synopsis:

    for group, key in keyed(captured.factors, seed=0, position=3):
        ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
    TableFactors,
)
from keras_tracin.projection import random

Group = OuterFactors | LookupFactors | DenseGradients


def keyed(
    factors: Sequence[Factors], seed: int, position: tf.Tensor | int
) -> Iterator[tuple[Group, tf.Tensor]]:
    """Each group's factors, and the key that its random numbers grow from.

    Tables that are used in several ways have their gradients made: no
    projection has a shorter way for them.

    Args:
        factors: those of all groups, in the model's order.
        seed: that of the projection.
        position: the checkpoint's, among those that are visited.
    """
    key = random.fold(random.root(seed), position)
    for at, group in enumerate(factors):
        if isinstance(group, TableFactors):
            group = algebra.materialize(group)
        yield group, random.fold(key, at)
