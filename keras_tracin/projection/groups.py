"""Keys of random numbers for a model's groups of variables.

Synopsis:

    for group, key in groups_with_keys(captured.factors, seed=0, position=3):
        ...
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import tensorflow as tf

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.factors import (
    DenseGradients,
    Factors,
    LookupFactors,
    OuterFactors,
    PositionGradients,
    TableFactors,
)
from keras_tracin.projection import random

Group = OuterFactors | LookupFactors | DenseGradients


def groups_with_keys(
    factors: Sequence[Factors], seed: int, position: tf.Tensor | int
) -> Iterator[tuple[Group, tf.Tensor]]:
    """Pairs of a group's factors and the key of its random numbers.

    Gradients of tables that are used in several ways are materialized, since
    no projection has a faster way for them. Kernels are projected as inputs ×
    outputs, in whichever order they store their axes.

    Args:
        factors: factors of all groups, in the model's order.
        seed: seed of the projection.
        position: position of the checkpoint among those in use.
    """
    key = random.fold(random.root(seed), position)
    for number, group in enumerate(factors):
        if isinstance(group, TableFactors | PositionGradients):
            group = algebra.materialize(group)
        elif isinstance(group, OuterFactors) and group.axes is not None:
            group = dataclasses.replace(group, axes=None)
        yield group, random.fold(key, number)
