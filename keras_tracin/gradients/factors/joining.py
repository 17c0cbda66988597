"""Several factors as one: uses of one variable, batches of one layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from keras_tracin.gradients.factors.kinds import (
    Factors,
    LookupFactors,
    OuterFactors,
    TableFactors,
)
from keras_tracin.gradients.factors.operations import materialize


def merge(uses: list[Factors]) -> Factors:
    """One set of factors for variables that were used several times.

    The gradient of a variable is the sum over its uses: positions of one use
    are set beside those of the next. Where one use's gradients are
    materialised, all are.
    """
    if len(uses) == 1:
        return uses[0]
    outer = [use for use in uses if isinstance(use, OuterFactors)]
    looked_up = [use for use in uses if isinstance(use, LookupFactors)]
    if len(outer) == len(uses):
        return _side_by_side(outer, "inputs")
    if len(looked_up) == len(uses):
        return _side_by_side(looked_up, "ids")
    if len(outer) + len(looked_up) == len(uses):
        return TableFactors(
            _side_by_side(looked_up, "ids"), _side_by_side(outer, "inputs")
        )
    full = [materialize(use) for use in uses]
    columns = zip(*(use.parts for use in full), strict=True)
    summed = tuple(tf.add_n(column) for column in columns)
    return dataclasses.replace(full[0], parts=summed)


def _side_by_side(uses: list[Any], side: str) -> Any:
    """The positions of several uses of one kind as those of one."""
    joined = {
        name: tf.concat([getattr(use, name) for use in uses], axis=1)
        for name in (side, "grads")
    }
    return dataclasses.replace(uses[0], **joined)


def concat(blocks: list[Any]) -> Any:
    """Puts the examples of several batches' factors one after another."""
    if len(blocks) == 1:
        return blocks[0]
    return tf.nest.map_structure(
        lambda *tensors: tf.concat(tensors, axis=0), *blocks
    )
