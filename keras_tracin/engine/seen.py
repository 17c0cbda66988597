"""Gradients of a few examples, as a first look at them compares them.

Synopsis:

    seen = look_at(functions, data, count=8)
    marks = seen.marks([seen, others])       # numbers of each example
    alike(marks[0], marks[8], tolerance, scale)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients import graphs
from keras_tracin.gradients.capture import Captured
from keras_tracin.models.state import value_of

_FAINT = 1e-2  # of the longest gradient: shorter ones are measured by this


class Lengths:
    """Lengths of gradients, for steps that make no factors.

    Args:
        lengths: `[n]`.

    Attributes:
        tells_apart: whether gradients are known variable by variable.
        step: name of the compiled step.
    """

    tells_apart = False
    step = "squared_norms"

    def __init__(self, lengths: np.ndarray):
        self.lengths = lengths

    def totals(self, functions: GradientFunctions) -> list[tf.Tensor]:
        """Not known of lengths."""
        raise NotImplementedError

    def marks(self, others: Sequence[Any]) -> np.ndarray:
        """Numbers that tell gradients apart, `[n, 1]`."""
        return np.concatenate([seen.lengths for seen in others])[:, np.newaxis]


class SeenFactors:
    """The factors of gradients, for each variable.

    Args:
        captured: the gradients of a batch.
        count: number of its examples that count; others fill it up.

    Attributes:
        tells_apart: whether gradients are known variable by variable.
        step: name of the compiled step.
    """

    tells_apart = True
    step = "captured"

    def __init__(self, captured: Captured, count: int):
        self.captured, self.factors = captured, captured.factors
        if len(captured.losses) > count:
            self.factors = tf.nest.map_structure(
                lambda leaf: leaf[:count], captured.factors
            )
        self.losses = captured.losses[:count]

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """The lengths of the whole gradients, `[n]`."""
        return np.sqrt(_squares(self.factors).numpy().astype(float))

    @functools.cached_property
    def _total(self) -> list[tuple[tf.Tensor, ...]]:
        return [algebra.total(factors) for factors in self.factors]

    def totals(self, functions: GradientFunctions) -> list[tf.Tensor]:
        """The sum of the gradients, for each of `variables_to_check`."""
        flat: dict[int, tf.Tensor] = {}
        groups = zip(self.captured.positions, self._total, strict=True)
        for positions, parts in groups:
            flat.update(zip(positions, parts, strict=True))
        covered = functions.covered_variables
        at = {id(value_of(v)): place for place, v in enumerate(covered)}
        return [
            flat.get(at.get(id(value_of(v)), -1), tf.zeros([1]))
            for v in variables_to_check(functions)
        ]

    def marks(self, others: Sequence[Any]) -> np.ndarray:
        """Lengths, products with the sum, and losses, `[n, 3]`."""
        factors = algebra.concat([seen.factors for seen in others])
        shares = [
            algebra.contract(group, own)
            for group, own in zip(factors, self._total, strict=True)
        ]
        lengths = np.sqrt(_squares(factors).numpy().astype(float))
        losses = np.concatenate([np.asarray(s.losses, float) for s in others])
        whole = length_of([part for own in self._total for part in own])
        along = np.asarray(tf.add_n(shares), float) / (whole or 1.0)
        return np.stack([lengths, along, losses], axis=1)


Seen = Lengths | SeenFactors


def look_at(functions: GradientFunctions, data: Any, count: int) -> Seen:
    """The gradients of a batch, by the compiled step that is at hand.

    Args:
        functions: the compiled steps.
        data: `(x, y[, sample_weight])` of a batch.
        count: number of its examples that count; others fill it up.
    """
    if _makes_lengths_only(functions):
        squares = functions.squared_norms(data, np.float32(1))
        return Lengths(np.sqrt(squares.numpy()[:count].astype(float)))
    return SeenFactors(functions.captured(data), count)


def variables_to_check(functions: GradientFunctions) -> list[keras.Variable]:
    """The variables that gradients should be of: all, or those of `layers=`."""
    if functions.restricted:
        return list(functions.covered_variables)
    with functions.updated.trainable():
        return list(functions.model.trainable_variables)


def has_loops(functions: GradientFunctions, step: str) -> bool:
    """Whether something in the trace of a step loops.

    Args:
        functions: the compiled steps.
        step: the name of one.
    """
    return graphs.has_loops(
        getattr(functions, step).get_concrete_function().graph
    )


def _makes_lengths_only(functions: GradientFunctions) -> bool:
    """Whether lengths of gradients have been traced, and factors have not."""
    traced = vars(functions)
    return (
        "squared_norms" in traced
        and "captured" not in traced
        and not functions.projects
        and not functions.updated.differ(functions.covered_variables)
    )


def _squares(factors: Any) -> tf.Tensor:
    return tf.add_n([algebra.squared_norm(group) for group in factors])


def alike(
    one: np.ndarray,
    other: np.ndarray,
    tolerance: float,
    largest: np.ndarray,
    noise: np.ndarray | float = 0.0,
) -> bool:
    """Whether an example's numbers are the same in two batches.

    Args:
        one: the marks of the example in a batch.
        other: its marks in another batch.
        tolerance: the share of its size by which a mark may differ.
        largest: the largest of each mark over all examples.
        noise: by how much each mark may differ beside that.
    """
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return bool(np.array_equal(np.isfinite(one), np.isfinite(other)))
    size = np.maximum(np.abs(one), np.abs(other))
    size[1:2] = size[:1]  # a product is measured by the lengths
    scale = np.maximum(size, _FAINT * largest)
    return bool(np.all(np.abs(one - other) <= tolerance * scale + noise))


def differences(
    one: Sequence[tf.Tensor], other: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """The differences of tensors, flat."""
    return [
        tf.reshape(b, [-1]) - tf.cast(tf.reshape(a, [-1]), b.dtype)
        for a, b in zip(one, other, strict=True)
    ]


def length_of(parts: Sequence[tf.Tensor]) -> float:
    """The length of several tensors as one vector."""
    squares = [tf.reduce_sum(tf.square(part)) for part in parts]
    return float(np.sqrt(sum(float(square) for square in squares)))
