"""The variables that the steps of a run updated, and their shares.

A variable that was frozen while others trained did not move, so no gradient by
it had an influence then, whatever `trainable` says now; and a variable that is
frozen now may have been trained. So the gradients are those of all variables
that some checkpoint's steps updated, and in each checkpoint's scores a
variable is weighted by its *share*: its own mean rate, as part of the
checkpoint's.

Where each checkpoint's steps updated what is trainable now, at one rate, every
share is one, and nothing is changed.

Synopsis:

    updated = UpdatedVariables(model, checkpoints)
    with updated.trainable():       # while layers are looked at and traced
        ...
    updated.visit(checkpoint)       # before steps run with its weights
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.distribution import Strategy
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import Captured
from keras_tracin.gradients.factors import Factors
from keras_tracin.runs import Checkpoint


class UpdatedVariables:
    """The shares that variables have in the scores of checkpoints.

    Args:
        model: a built model.
        checkpoints: the checkpoints that are visited. One that does not know
            which variables were updated, and None, stand for those trainable
            now.
        strategy: the strategy that steps are spread over.
    """

    def __init__(
        self,
        model: keras.Model,
        checkpoints: Iterable[Checkpoint | None] = (),
        strategy: Strategy | None = None,
    ):
        self._model = model
        self._position = {id(w): at for at, w in enumerate(model.weights)}
        now = self._trainable_now()
        covered: set[int] = set()
        self._shares: dict[Checkpoint | None, np.ndarray] = {}
        for checkpoint in checkpoints:
            share = np.zeros(len(self._position))
            if checkpoint is None or checkpoint.updated is None:
                share[sorted(now)] = 1
                covered |= now
            else:
                known = {
                    position: rate / checkpoint.learning_rate
                    for position, rate in checkpoint.updated.items()
                    if position < len(share)
                }
                share[list(known)] = list(known.values())
                covered |= known.keys()
            self._shares[checkpoint] = share
        self._covered = covered or now
        shares = list(self._shares.values())
        self._table = np.stack(shares or [np.ones(len(self._position))])
        # Until a checkpoint is visited, results that depend on it are NaN.
        self._unknown = np.full(len(self._position), np.nan)
        self._current: tf.Variable | None = None
        if (self._table[:, sorted(self._covered)] != 1).any():
            with contextlib.ExitStack() as stack:
                if strategy is not None:
                    stack.enter_context(strategy.scope())
                self._current = tf.Variable(
                    self._unknown, trainable=False, dtype=tf.float32
                )

    @contextlib.contextmanager
    def trainable(self) -> Iterator[None]:
        """Makes the variables that some steps updated trainable in a block."""
        if self._trainable_now() == self._covered:
            yield
            return
        layers = [(x, x._trainable) for x in self._model._flatten_layers()]
        weights = [(w, w.trainable) for w in self._model.weights]
        try:
            for layer, _ in layers:
                layer._trainable = True
            for at, (weight, _) in enumerate(weights):
                weight.trainable = at in self._covered
            yield
        finally:
            for layer, before in layers:
                layer._trainable = before
            for weight, before in weights:
                weight.trainable = before

    def _trainable_now(self) -> set[int]:
        return {self._position[id(w)] for w in self._model.trainable_weights}

    def visit(self, checkpoint: Checkpoint | None) -> None:
        """Takes the shares of a checkpoint, whose weights the model has now."""
        if self._current is not None:
            self._current.assign(self._shares.get(checkpoint, self._unknown))

    def leave(self) -> None:
        """Takes the shares of weights that are no checkpoint's."""
        if self._current is not None:
            self._current.assign(self._unknown)

    @contextlib.contextmanager
    def visiting(self, checkpoint: Checkpoint | None) -> Iterator[None]:
        """Visits a checkpoint for the length of a block."""
        self.visit(checkpoint)
        try:
            yield
        finally:
            self.leave()

    def moved(
        self, checkpoint: Checkpoint | None, variables: Sequence[keras.Variable]
    ) -> bool:
        """Whether a checkpoint's steps moved any of these variables."""
        share = self._shares[checkpoint]
        return any(share[self._position[id(v)]] for v in variables)

    def differ(self, variables: Sequence[keras.Variable]) -> bool:
        """Whether one of them has another share than one, at a checkpoint."""
        return bool((self._columns(variables) != 1).any())

    def describe(self, variables: Sequence[keras.Variable]) -> list | None:
        """The shares of these variables, as JSON; None if all are one."""
        if not self.differ(variables):
            return None
        return self._columns(variables).tolist()

    def _columns(self, variables: Sequence[keras.Variable]) -> np.ndarray:
        return self._table[:, [self._position[id(v)] for v in variables]]

    def split(
        self, captured: Captured, variables: Sequence[keras.Variable]
    ) -> Captured:
        """Gradients in groups whose variables all have the same share.

        Args:
            captured: gradients.
            variables: the variables that its `positions` stand for.
        """
        if self._current is None:
            return captured
        names: list[str] = []
        factors: list[Factors] = []
        positions: list[tuple[int, ...]] = []
        for name, group, members in zip(
            captured.names, captured.factors, captured.positions, strict=True
        ):
            columns = self._columns([variables[at] for at in members])
            if (columns == columns[:, :1]).all():
                parts, kinds = [group], [members]
            else:
                parts = algebra.split(group, terms=True)
                kinds = [(at,) for at in members]
            names += [name] * len(parts)
            factors += parts
            positions += kinds
        return dataclasses.replace(
            captured,
            names=tuple(names),
            factors=tuple(factors),
            positions=tuple(positions),
        )

    def shares_of(
        self, captured: Captured, variables: Sequence[keras.Variable]
    ) -> list[tf.Tensor | None]:
        """The share of each group at the checkpoint visited; None for one."""
        shares: list[tf.Tensor | None] = []
        for members in captured.positions:
            first = variables[members[0]]
            share = None
            if self._current is not None and self.differ([first]):
                share = self._current[self._position[id(first)]]
            shares.append(share)
        return shares


def unequal_shares(what: str) -> str:
    """Says why something needs variables that all have the same share.

    Args:
        what: the way to score, in words.
    """
    return (
        f"{what} counts every variable alike, but the steps of the run did "
        "not: some updated variables that others left frozen, or at another "
        "rate. Use kt.TracIn without options that make sketches or look at "
        "the optimizer; or a part of the run, `run[start:stop]`, whose steps "
        "all updated what is trainable; or name in `layers=` the layers that "
        "all of its steps updated."
    )


def scale(factors: Factors, share: tf.Tensor | None) -> Factors:
    """The gradients times a share; None for one."""
    if share is None:
        return factors
    if isinstance(factors, algebra.DenseGradients | algebra.PositionGradients):
        parts = tuple(tf.cast(share, p.dtype) * p for p in factors.parts)
        return dataclasses.replace(factors, parts=parts)
    if isinstance(factors, algebra.TableFactors):
        uses = factors.looked_up, factors.outer
        looked_up, outer = (_scale_grads(use, share) for use in uses)
        return dataclasses.replace(factors, looked_up=looked_up, outer=outer)
    return _scale_grads(factors, share)


def _scale_grads(
    factors: algebra.OuterFactors | algebra.LookupFactors, share: tf.Tensor
) -> Any:
    grads = tf.cast(share, factors.grads.dtype) * factors.grads
    return dataclasses.replace(factors, grads=grads)
