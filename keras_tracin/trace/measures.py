"""What is computed at a training step: one compiled call before, one after.

Before the step, at w_t, the queries' losses and gradients, those of the batch,
and where the plain gradient step would lead; after it, the losses at w_{t+1}.
The weights, and the seeds of Dropout, are put back before the step is made.

Synopsis:

    measures = Measures(model, queries, StepGradients(model, spec))
    before = measures.before(batch, rate)
    ...                                  # the optimizer's step
    losses, along = measures.after(before)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.engine.steps import batch_spec, kind_of
from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.nest import Nest
from keras_tracin.gradients.placement import place
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.trace.gradients import StepGradients, triple


@dataclasses.dataclass(frozen=True)
class Before(Nest):
    """What is known of a step before it is made.

    Attributes:
        losses: `[m]` the queries' losses at w_t.
        shares: `[m, b]` η_t b_i ∇ℓ(w_t, z_i) · ∇ℓ(w_t, z').
        stepped: `[m]` the losses after the plain step; empty if it is the
            real one.
        weights: w_t, and nothing if the step is plain.
        factors: the queries' gradients, and nothing if the step is plain.
    """

    losses: tf.Tensor
    shares: tf.Tensor
    stepped: tf.Tensor
    weights: tuple
    factors: tuple


class Measures:
    """The measurements of one model's training at one set of queries.

    Args:
        model: a built and compiled model.
        queries: `(x, y[, sample_weight])`.
        gradients: those of the batches.

    Attributes:
        is_plain: whether a step is w - η Σ b_i ∇ℓ_i and nothing else.
    """

    def __init__(
        self, model: keras.Model, queries: Any, gradients: StepGradients
    ):
        self._model, self._gradients = model, gradients
        self._queries = tf.nest.map_structure(tf.convert_to_tensor, queries)
        self._spec = batch_spec(self._queries)
        self._loss = per_example_loss(model)
        x, y, sample_weight = triple(self._spec)
        self._placement = place(
            model, x, loss=self._loss, y=y, sample_weight=sample_weight
        )
        self._groups: tuple = ()
        self.is_plain = is_plain(model) and not gradients.kept_out
        self._compiled: dict[str, Any] = {}
        self._after = tf.function(self._look_after, autograph=False)

    def before(self, data: Any, rate: float) -> Before:
        """Measures at the present weights, and leaves them as they are.

        Args:
            data: the batch that comes next.
            rate: the learning rate it will be applied with.
        """
        kind = kind_of(data)
        if kind not in self._compiled:
            rate_spec = tf.TensorSpec([], tf.float32)
            self._compiled[kind] = tf.function(
                self._look_before,
                autograph=False,
                input_signature=(self._spec, batch_spec(data), rate_spec),
            )
        return self._compiled[kind](self._queries, data, np.float32(rate))

    def after(self, before: Before) -> tuple[tf.Tensor, tf.Tensor]:
        """Measures at the weights that the step has led to.

        Returns:
            `[m]` losses at w_{t+1}, and `[m]` (w_t - w_{t+1}) · ∇ℓ(w_t, z'),
            which of a plain step is empty.
        """
        return self._after(self._queries, before)

    def _look_before(self, queries, data, rate):
        found = capture(
            self._model, self._loss, triple(queries), self._placement
        )
        known = self._placement.variables
        self._groups = tuple(
            tuple(known[at] for at in group) for group in found.positions
        )
        factors = tuple(algebra.compact(each) for each in found.factors)
        batch = self._gradients.of(data)
        products = tf.add_n(
            [
                algebra.inner(query, algebra.compact(each))
                for query, each in zip(factors, batch, strict=True)
            ]
        )
        shares = tf.cast(rate, products.dtype) * products
        if self.is_plain:
            return Before(found.losses, shares, found.losses[:0], (), ())
        weights = [
            tf.identity(v.value) for v in self._model.trainable_variables
        ]
        stepped = self._losses_after_step(queries, batch, rate)
        for v, value in zip(
            self._model.trainable_variables, weights, strict=True
        ):
            v.assign(value)
        return Before(found.losses, shares, stepped, tuple(weights), factors)

    def _losses_after_step(self, queries, batch, rate):
        for v, gradient in self._gradients.total(batch):
            step = tf.cast(rate, gradient.dtype) * gradient
            v.assign_sub(tf.cast(tf.reshape(step, v.shape), v.dtype))
        return self._losses(queries)

    def _look_after(self, queries, before):
        losses = self._losses(queries)
        if self.is_plain:
            return losses, losses[:0]
        moves = {
            id(v): tf.reshape(value - v.value, [-1])
            for v, value in zip(
                self._model.trainable_variables, before.weights, strict=True
            )
        }
        parts = [
            algebra.contract(
                factors,
                tuple(tf.cast(moves[id(v)], losses.dtype) for v in variables),
            )
            for factors, variables in zip(
                before.factors, self._groups, strict=True
            )
        ]
        return losses, tf.add_n(parts)

    def _losses(self, queries):
        x, y, weight = triple(queries)
        return self._loss(y, self._model(x, training=False), weight)


def is_plain(model: keras.Model) -> bool:
    """Whether model and optimizer make steps w - η Σ b_i ∇ℓ_i."""
    optimizer = model.optimizer
    extras = ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm")
    return (
        type(optimizer) is keras.optimizers.SGD
        and not optimizer.momentum
        and not optimizer.use_ema
        and not any(getattr(optimizer, name, None) for name in extras)
        and not any(getattr(v, "regularizer", None) for v in model.weights)
        and not model.non_trainable_weights
        and type(model).train_step is keras.Model.train_step
    )
