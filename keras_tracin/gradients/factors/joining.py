"""Merges factors of several uses of a variable, or of several batches."""

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
    """Merges the factors of variables that were used several times.

    The gradient of a variable is the sum over its uses: positions of all uses
    are concatenated. If one use is materialized, all are.
    """
    if len(uses) == 1:
        return uses[0]
    outer = [use for use in uses if isinstance(use, OuterFactors)]
    looked_up = [use for use in uses if isinstance(use, LookupFactors)]
    if len(outer) == len(uses):
        return _concat_positions(outer, "inputs")
    if len(looked_up) == len(uses):
        return _concat_positions(looked_up, "ids")
    if len(outer) + len(looked_up) == len(uses):
        return TableFactors(
            _concat_positions(looked_up, "ids"),
            _concat_positions(outer, "inputs"),
        )
    full = [materialize(use) for use in uses]
    columns = zip(*(use.parts for use in full), strict=True)
    summed = tuple(tf.add_n(column) for column in columns)
    return dataclasses.replace(full[0], parts=summed)


def _concat_positions(uses: list[Any], side: str) -> Any:
    """Concatenates the positions of several uses of one kind."""
    arrays = {
        name: tf.concat([getattr(use, name) for use in uses], axis=1)
        for name in (side, "grads")
    }
    return dataclasses.replace(uses[0], **arrays)


def concat(blocks: list[Any]) -> Any:
    """Concatenates the examples of several batches' factors."""
    if len(blocks) == 1:
        return blocks[0]
    return tf.nest.map_structure(
        lambda *tensors: tf.concat(tensors, axis=0), *blocks
    )
