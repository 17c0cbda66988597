"""Merges factors of several uses of a variable, or of several batches."""

from __future__ import annotations

import dataclasses
from typing import Any

import tensorflow as tf

from keras_tracin.gradients.factors.kinds import (
    Factors,
    LookupFactors,
    OuterFactors,
    PositionGradients,
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
    terms = [use for use in uses if isinstance(use, PositionGradients)]
    if len(outer) == len(uses) and _alike(outer):
        return _concat_positions(outer, ("inputs", "grads"))
    if len(looked_up) == len(uses):
        return _concat_positions(looked_up, ("ids", "grads"))
    if len(terms) == len(uses) and all(use.rows is None for use in terms):
        return _concat_positions(terms, ("parts",))
    if len(outer) + len(looked_up) == len(uses) and _alike(outer):
        return TableFactors(
            _concat_positions(looked_up, ("ids", "grads")),
            _concat_positions(outer, ("inputs", "grads")),
        )
    full = [materialize(use) for use in uses]
    columns = zip(*(use.parts for use in full), strict=True)
    summed = tuple(tf.add_n(column) for column in columns)
    return dataclasses.replace(full[0], parts=summed)


def _alike(uses: list[OuterFactors]) -> bool:
    """Whether entries along `t` mean the same in all uses."""
    return len({(use.runs, use.axes, use.bias) for use in uses}) == 1


def _concat_positions(uses: list[Any], names: tuple[str, ...]) -> Any:
    """Concatenates the positions of several uses of one kind."""
    if len(uses) == 1:
        return uses[0]
    arrays = {
        name: tf.nest.map_structure(
            lambda *sides: tf.concat(sides, axis=1),
            *(getattr(use, name) for use in uses),
        )
        for name in names
    }
    calls = sum((_calls_of(use) for use in uses), start=())
    return dataclasses.replace(uses[0], **arrays, calls=calls)


def _calls_of(use: Any) -> tuple[int | None, ...]:
    """The number of entries along `t` of each call."""
    if use.calls:
        return use.calls
    side = use.parts[0] if isinstance(use, PositionGradients) else use.grads
    return (side.shape[1],)


def concat(blocks: list[Any]) -> Any:
    """Concatenates the examples of several batches' factors."""
    if len(blocks) == 1:
        return blocks[0]
    return tf.nest.map_structure(
        lambda *tensors: tf.concat(tensors, axis=0), *blocks
    )
