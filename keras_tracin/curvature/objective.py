"""Curvature of the training objective, as operators on vectors.

The objective is the mean loss over the training data plus the weight
regularisers: `J(w) = (1/n) Σ_i ℓ_i(w) + ρ R(w)`. Its Hessian is p × p and never
written out; its product with a vector costs about two gradients of the data
(Pearlmutter 1994), and many vectors share the first half of the work.

Synopsis:

    hessian = Hessian(model, loss, train, variables)
    damped = Damped(hessian, 0.01)
    damped.matmat(vectors)                      # [m, p] -> [m, p]
    damped.sample(rng, 64).matmat(vectors)      # by 64 random examples
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_tracin.curvature.layer_blocks import LayerBlocks
from keras_tracin.curvature.mean_loss import MeanLossCurvature
from keras_tracin.curvature.penalty import ZEROS, Parts
from keras_tracin.gradients.placement import check_loss_of_outputs


@dataclasses.dataclass(frozen=True, eq=False)
class Hessian(MeanLossCurvature):
    """The Hessian of the objective: `∇²J v` for any vector `v`.

    Not positive definite unless the objective is convex; see `Damped` and
    `GaussNewton`. The second derivative of a ReLU counts as zero.

    Attributes:
        gauss_newton: makes the Gauss-Newton matrix of the same objective, for
            a solver that is preconditioned with it.
    """

    gauss_newton: Callable[[], GaussNewton] | None = None

    @functools.cached_property
    def nearby(self) -> LayerBlocks | None:
        """The blocks of its Gauss-Newton matrix, if that is known."""
        return self.gauss_newton and self.gauss_newton().by_layer

    def linearize(self, data, real):
        with tf.GradientTape(
            persistent=True, watch_accessed_variables=False
        ) as outer:
            outer.watch(self.values)
            with tf.GradientTape(watch_accessed_variables=False) as inner:
                inner.watch(self.values)
                total = self.total_loss(data, real)[0]
            grads = self.gradients(inner, total)

        def product(vector: Parts) -> Parts:
            products = outer.gradient(
                grads, self.values, output_gradients=vector, **ZEROS
            )
            return [tf.convert_to_tensor(part) for part in products]

        return product


@dataclasses.dataclass(frozen=True, eq=False)
class GaussNewton(MeanLossCurvature):
    """`(1/n) Σ Jᵀ (∂²ℓ/∂z²) J` with `J` the Jacobian of the outputs z.

    Where the loss is convex in the outputs it is positive semi-definite, and
    for the negative log-likelihood of a softmax, a sigmoid or a Gaussian it is
    the Fisher information (Martens 2020, sec. 9). The outputs are the logits
    where Keras knows them (a softmax or sigmoid at the end of the model).
    A loss that reads weights itself has a curvature beside that, and is
    refused.

    Attributes:
        layers: names or layers that the variables are restricted to.
    """

    layers: Any = None

    def __post_init__(self):
        super().__post_init__()
        check_loss_of_outputs(
            self.model, self.loss, self.spec, "Gauss-Newton matrices"
        )

    @functools.cached_property
    def by_layer(self) -> LayerBlocks:
        """Its blocks, as EK-FAC needs them."""
        return LayerBlocks(self, self.layers)

    def linearize(self, data, real):
        options = {"persistent": True, "watch_accessed_variables": False}
        with tf.GradientTape(**options) as outer:
            outer.watch(self.values)
            with tf.GradientTape(**options) as inner:
                inner.watch(self.values)
                total, outputs = self.total_loss(data, real)
                logits = [
                    getattr(output, "_keras_logits", output)
                    for output in tf.nest.flatten(outputs)
                ]
            gradients = inner.gradient(total, logits, **ZEROS)
            # Jᵀu is linear in u; differentiated by u it gives J.
            probes = [tf.ones_like(output) for output in logits]
            outer.watch(probes)
            pulled = inner.gradient(
                logits, self.values, output_gradients=probes, **ZEROS
            )
            pulled = [tf.convert_to_tensor(part) for part in pulled]
        self.gradients(inner, total)  # refuses variables without one

        def product(vector: Parts) -> Parts:
            pushed = outer.gradient(
                pulled, probes, output_gradients=vector, **ZEROS
            )
            curved = outer.gradient(
                gradients, logits, output_gradients=pushed, **ZEROS
            )
            products = inner.gradient(
                logits, self.values, output_gradients=curved, **ZEROS
            )
            return [tf.convert_to_tensor(part) for part in products]

        return product
