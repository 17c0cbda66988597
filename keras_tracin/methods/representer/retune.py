"""Retuning of a last layer to the stationary point of its objective.

SciPy's L-BFGS-B reaches it as a rule. Where it stops early, SciPy's
trust-region Newton method with conjugate gradients continues from there.

Synopsis:

    retuned = retune(objective, start=head.weights)
    retuned.weights                  # [f, k]
    retuned.gradient_ratio           # ‖∇J‖, as a share of that at the start
"""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import scipy

from keras_tracin.methods.representer.objective import Objective

# The goal: ‖∇J‖ as a share of that at the reference or, should that be
# stationary already, a residual that cannot matter.
_GRADIENT_RATIO = 1e-7
_NEGLIGIBLE_RESIDUAL = 1e-9
_LARGEST_RESIDUAL = 1e-4  # beyond it the points do not add up well enough
_STEPS = 3000
_NEWTON_STEPS = 50


@dataclasses.dataclass(frozen=True)
class Retuned:
    """A retuned last layer.

    Attributes:
        weights: `[f, k]`.
        gradient_ratio: ‖∇J‖ there, as a share of that at the reference.
        residual: ‖∇J‖ / (2λ‖W‖), the distance of the sum of the representer
            points from the weights, as a share of their length.
    """

    weights: np.ndarray
    gradient_ratio: float
    residual: float


def retune(
    objective: Objective,
    start: np.ndarray,
    reference: np.ndarray | None = None,
) -> Retuned:
    """Minimises an objective.

    Args:
        objective: the objective to minimise.
        start: `[f, k]`, the weights to start from.
        reference: `[f, k]`, the weights whose gradient the remaining one is
            compared with; `start` by default.

    Warns if the residual stays so large that representer points will not add
    up to the logits.
    """
    search = _Search(objective, start if reference is None else reference)
    weights = search.run("L-BFGS-B", start, maxiter=_STEPS, maxcor=30, ftol=0)
    if search.norm(weights) > search.goal:
        weights = search.run("trust-ncg", weights, maxiter=_NEWTON_STEPS)
    norm = search.norm(weights)
    scale = 2 * objective.l2 * np.linalg.norm(weights)
    residual = float(norm / scale) if scale else float(norm > 0)
    if residual > _LARGEST_RESIDUAL:
        warnings.warn(
            "Retuning the last layer did not come to a stationary point: the "
            f"representer points miss its weights by {residual:.1e} of their "
            f"length, expected at most {_LARGEST_RESIDUAL:.0e}. Choose a "
            f"larger `l2` (received: {objective.l2}), or scale the layer's "
            "inputs down, for example by a normalization before it.",
            stacklevel=3,
        )
    ratio = norm / search.initial if search.initial else 0.0
    return Retuned(weights, float(ratio), residual)


class _Search:
    """An objective as SciPy takes it: of flat vectors, with a stop."""

    def __init__(self, objective: Objective, reference: np.ndarray):
        self._objective, self._shape = objective, reference.shape
        self.initial = self.norm(reference)
        length = float(np.linalg.norm(reference))
        self.goal = max(
            _GRADIENT_RATIO * self.initial,
            _NEGLIGIBLE_RESIDUAL * 2 * objective.l2 * length,
        )

    def norm(self, weights: np.ndarray) -> float:
        """‖∇J‖ at `weights [f, k]`."""
        return float(
            np.linalg.norm(self._objective.value_and_gradient(weights)[1])
        )

    def run(self, method: str, start: np.ndarray, **options) -> np.ndarray:
        """The weights at which one of SciPy's methods stops."""
        latest = np.inf

        def value_and_gradient(flat):
            nonlocal latest
            value, gradient = self._objective.value_and_gradient(
                flat.reshape(self._shape)
            )
            latest = float(np.linalg.norm(gradient))
            return value, gradient.reshape(-1)

        def hessian_product(flat, direction):
            product = self._objective.hessian_product(
                flat.reshape(self._shape), direction.reshape(self._shape)
            )
            return product.reshape(-1)

        def stop_at_goal(_):
            # L-BFGS-B's own limit is on the largest entry, not the length.
            if latest <= self.goal:
                raise StopIteration

        newton = {"hessp": hessian_product} if method != "L-BFGS-B" else {}
        result = scipy.optimize.minimize(
            value_and_gradient,
            start.reshape(-1),
            jac=True,
            method=method,
            callback=stop_at_goal,
            options={"gtol": 0.0, **options},
            **newton,
        )
        return result.x.reshape(self._shape)
