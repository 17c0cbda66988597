"""Measurements at a training step: one compiled call before, one after.

Before the step, at w_t, they are the losses and gradients of the queries, the
gradients of the batch, and the losses that the plain gradient step would reach;
after it, the losses at w_{t+1}. The weights and the seeds of Dropout are
restored before the real step.

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
from keras_tracin.gradients.compiling import compile_step
from keras_tracin.gradients.nest import Nest
from keras_tracin.gradients.placement import place
from keras_tracin.losses.per_example import per_example_loss
from keras_tracin.trace.gradients import StepGradients, triple


@dataclasses.dataclass(frozen=True)
class Before(Nest):
    """Measurements before a step.

    Attributes:
        losses: losses of the queries at w_t, `[m]`.
        shares: η_t b_i ∇ℓ(w_t, z_i) · ∇ℓ(w_t, z'), `[m, b]`.
        stepped: losses after the plain gradient step, `[m]`; empty if the real
            step is plain.
        weights: w_t; empty if the step is plain.
        factors: gradients of the queries; empty if the step is plain.
        positions: positions of the variables of each group of factors, as in
            `Captured`.
    """

    losses: tf.Tensor
    shares: tf.Tensor
    stepped: tf.Tensor
    weights: tuple
    factors: tuple
    positions: tuple[tuple[int, ...], ...]

    static = ("positions",)


class Measures:
    """Measures how steps of a model's training change losses of queries.

    Args:
        model: a built and compiled model.
        queries: `(x, y[, sample_weight])`.
        gradients: computes gradients of the batches.

    Attributes:
        is_plain: True if a step is w - η Σ b_i ∇ℓ_i and nothing else.
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
        self.is_plain = is_plain(model) and not gradients.inference_layers
        self._compiled: dict[str, Any] = {}
        self._after = tf.function(self._measure_after, autograph=False)

    def before(self, data: Any, rate: float) -> Before:
        """Measures at the present weights, which are left unchanged.

        Args:
            data: the next batch.
            rate: learning rate of the next step.
        """
        kind = kind_of(data)
        if kind not in self._compiled:
            rate_spec = tf.TensorSpec([], tf.float32)
            self._compiled[kind] = compile_step(
                self._measure_before,
                (self._spec, batch_spec(data), rate_spec),
            )
        return self._compiled[kind](self._queries, data, np.float32(rate))

    def after(self, before: Before) -> tuple[tf.Tensor, tf.Tensor]:
        """Measures at the weights after the step.

        Returns:
            Losses at w_{t+1}, `[m]`, and (w_t - w_{t+1}) · ∇ℓ(w_t, z'), `[m]`,
            which is empty if the step is plain.
        """
        return self._after(self._queries, before)

    def _measure_before(self, queries, data, rate):
        captured = capture(
            self._model, self._loss, triple(queries), self._placement
        )
        factors = tuple(map(algebra.compact, captured.factors))
        batch = self._gradients.capture(data)
        products = tf.add_n(
            [
                algebra.inner(left, algebra.compact(right))
                for left, right in zip(factors, batch.factors, strict=True)
            ]
        )
        shares = tf.cast(rate, products.dtype) * products
        if self.is_plain:
            none = captured.losses[:0]
            return Before(captured.losses, shares, none, (), (), ())
        weights = [
            tf.identity(v.value) for v in self._model.trainable_variables
        ]
        stepped = self._losses_after_step(queries, batch, rate)
        for v, value in zip(
            self._model.trainable_variables, weights, strict=True
        ):
            v.assign(value)
        return Before(
            captured.losses,
            shares,
            stepped,
            tuple(weights),
            factors,
            captured.positions,
        )

    def _losses_after_step(self, queries, batch, rate):
        for v, gradient in self._gradients.total(batch):
            step = tf.cast(rate, gradient.dtype) * gradient
            v.assign_sub(tf.cast(tf.reshape(step, v.shape), v.dtype))
        return self._losses(queries)

    def _measure_after(self, queries, before):
        losses = self._losses(queries)
        if self.is_plain:
            return losses, losses[:0]
        steps = {
            id(v): tf.reshape(value - v.value, [-1])
            for v, value in zip(
                self._model.trainable_variables, before.weights, strict=True
            )
        }
        groups = self._placement.groups(before.positions)
        products = [
            algebra.contract(
                factors,
                tuple(tf.cast(steps[id(v)], losses.dtype) for v in variables),
            )
            for factors, variables in zip(before.factors, groups, strict=True)
        ]
        return losses, tf.add_n(products)

    def _losses(self, queries):
        x, y, weight = triple(queries)
        return self._loss(y, self._model(x, training=False), weight)


def is_plain(model: keras.Model) -> bool:
    """Whether steps of the optimizer are w - η Σ b_i ∇ℓ_i and nothing else."""
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
