"""Gradients of batches as factors, as the compiled steps begin with them.

Synopsis:

    capturing = Capturing(model, loss, batch_spec(data), **options)
    captured = capturing.capture(data)           # inside a `tf.function`
    factors = capturing.factors(data, position)  # or those of sketches
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_tracin.engine.updated import UpdatedVariables, scale, unequal_shares
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import Captured, PerExampleLoss, capture
from keras_tracin.gradients.placement import place
from keras_tracin.losses.per_example import check_no_activation_losses
from keras_tracin.projection import Projection, project


@dataclasses.dataclass(frozen=True)
class Compact(Captured):
    """Gradients in their compact form.

    Attributes:
        works: memory and multiplications for one example in the form that is
            multiplied fastest, and in the smallest.
    """

    works: tuple[algebra.Work, ...] = ()

    static = (*Captured.static, "works")  # type: ignore[assignment]


class Capturing:
    """Captures the gradients of one model, loss and kind of batch.

    Its methods are called inside a `tf.function`.

    Args:
        model: a built model.
        loss: `(y, y_pred, sample_weight) -> [n]`.
        spec: the types of a batch's parts, its size left open.
        layers: restricts the gradients, as in `find_sites`.
        strict: refuse losses that layers add from their inputs.
        projection: makes sketches in place of gradients.
        sparing: whether compact factors are in the form that takes the least
            memory, not in the one that is multiplied fastest.
        updated: the shares of the variables at the checkpoints.

    Attributes:
        variables: the variables that gradients are taken by, as
            `Captured.positions` counts them.
    """

    def __init__(
        self,
        model: keras.Model,
        loss: PerExampleLoss,
        spec: Any,
        layers: Sequence[str | keras.Layer] | None,
        strict: bool,
        projection: Projection | None,
        sparing: bool,
        updated: UpdatedVariables,
    ):
        self._model, self._loss, self._spec = model, loss, spec
        self._strict, self._sparing = strict, sparing
        self._projection, self._updated = projection, updated
        x, y, *weight = spec
        with updated.trainable():
            self._placement = place(
                model,
                x,
                layers,
                loss=loss,
                y=y,
                sample_weight=weight[0] if weight else None,
            )
        self.variables = self._placement.variables

    def capture(self, data: Any) -> Captured:
        """The gradients of a batch, variables with other shares apart.

        All steps share one trace of it, at the weights that the model's
        variables have when it runs.
        """
        return self._traced(data)

    @functools.cached_property
    def _traced(self) -> Any:
        return tf.function(
            self.capture_anew, autograph=False, input_signature=(self._spec,)
        )

    @property
    def structure(self) -> Captured:
        """What `capture` returns, as types."""
        return self._traced.get_concrete_function().structured_outputs

    def capture_anew(self, data: Any, by_position: bool = False) -> Captured:
        """`capture` in a trace of its own.

        For steps that lend the model tensors in place of its variables.

        Args:
            data: a batch.
            by_position: whether sums over positions keep their terms.
        """
        x, y, *weight = data
        batch = (x, y, weight[0] if weight else None)
        with self._updated.trainable():
            captured = capture(
                self._model,
                self._loss,
                batch,
                self._placement,
                by_position=True,
            )
        if self._strict:
            check_no_activation_losses(self._model)
        captured = self._updated.split(captured, self.variables)
        if by_position:
            return captured
        factors = tuple(map(algebra.summed, captured.factors))
        return dataclasses.replace(captured, factors=factors)

    def factors_by_position(self, data: Any, equal: bool) -> tuple:
        """The gradients' factors, whose sums over positions keep their terms.

        Args:
            data: a batch.
            equal: whether all variables have to have the share one, else they
                are multiplied by theirs.

        Raises:
            ValueError: if one has another where all should have one.
        """
        captured = self.capture_anew(data, by_position=True)
        if equal:
            return self.check_equal(captured).factors
        return self._weighted(captured)[0]

    def capture_equal(self, data: Any) -> Captured:
        """The gradients of a batch, where all variables have the share one.

        Raises:
            ValueError: if one has another.
        """
        return self.check_equal(self.capture(data))

    def check_equal(self, captured: Captured) -> Captured:
        """The same gradients, where all variables have the share one.

        Raises:
            ValueError: if one has another.
        """
        shares = self.shares_of(captured)
        if any(share is not None for share in shares):
            raise ValueError(unequal_shares("This way to score"))
        return captured

    def capture_compact(self, data: Any) -> Compact:
        """The gradients of a batch in their compact form."""
        captured = self.capture(data)
        fast, small = (
            sum(
                (algebra.work(f, sparing) for f in captured.factors),
                start=algebra.Work(0),
            )
            for sparing in (False, True)
        )
        return Compact(
            captured.names,
            captured.losses,
            self.compact(captured.factors),
            captured.positions,
            works=(fast, small),
        )

    def compact(self, factors: tuple) -> tuple:
        """Factors in their compact form."""
        return tuple(algebra.compact(f, self._sparing) for f in factors)

    def project(self, factors: tuple, position: tuple) -> tuple:
        """The factors of the sketches, or the same without a projection."""
        if self._projection is None:
            return factors
        return project(self._projection, factors, *position)

    def factors(self, data: Any, position: tuple) -> tuple:
        """The gradients' factors, or those of their sketches."""
        return self.project(self.capture(data).factors, position)

    def weighted_factors(self, data: Any, position: tuple) -> tuple:
        """The same, with every variable times its share."""
        return self.project(self.capture_weighted(data)[1], position)

    def capture_weighted(
        self, data: Any
    ) -> tuple[tuple, tuple, list[tf.Tensor | None]]:
        """The gradients' factors, these times their shares, the shares."""
        captured = self.capture(data)
        return captured.factors, *self._weighted(captured)

    def shares_of(self, captured: Captured) -> list[tf.Tensor | None]:
        """The share of each group's variables; None for one."""
        return self._updated.shares_of(captured, self.variables)

    def _weighted(
        self, captured: Captured
    ) -> tuple[tuple, list[tf.Tensor | None]]:
        """Factors times the shares of their variables, and these shares."""
        shares = self.shares_of(captured)
        pairs = zip(captured.factors, shares, strict=True)
        weighted = tuple(scale(factors, share) for factors, share in pairs)
        return weighted, shares
