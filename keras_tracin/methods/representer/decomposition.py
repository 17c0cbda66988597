"""Logits as sums over training examples, in two ways.

Either way the last layer's weights are a sum `W = Σ_i w_i` over the training
examples, and the score of example i for output c of a query t is
`s_i(t, c) = [f_t w_i]_c`, so that scores add up to the logit.

- `L2Points`: `w_i = f_iᵀ α_i`, exact where the layer minimises its
  L2-regularised objective (appendix A.2, eq. 4, with ∂ℓ/∂φ at the training
  example; Yeh et al. 2018, theorem 3.1).
- `LocalExpansion`: the layer as it is, by an expansion of the gradient around
  its weights (Sui et al. 2021).
"""

from __future__ import annotations

import functools

import numpy as np
import scipy

from keras_tracin.methods.representer.objective import Objective


class L2Points:
    """Representer points of a retuned layer, `α_i = −1/(2λn) ∂ℓ_i/∂φ_i`.

    Args:
        objective: the objective that the layer was retuned on.
        weights: the retuned weights, `[f, k]`.

    Attributes:
        values: α, `[n, k]`.
        importance: ‖α_i‖ over the outputs, `[n]`.
        total: Σ_i w_i, `[f, k]`.
    """

    def __init__(self, objective: Objective, weights: np.ndarray):
        self._features = objective.train.features
        scale = -1 / (2 * objective.l2 * len(objective.train))
        self.values = scale * objective.logit_gradients(weights)
        self.importance = np.linalg.norm(self.values, axis=1)
        self.total = self._features.T @ self.values

    def prepare(self, features: np.ndarray, outputs: np.ndarray):
        """Prepares `scores` of `m` queries' outputs.

        Args:
            features: the queries' features, `[m, f]`.
            outputs: the output that each asks about, `[m]`.
        """
        return features, outputs

    def scores(self, prepared, rows: slice) -> np.ndarray:
        """The scores `[m, c]` of the training examples in `rows`."""
        features, outputs = prepared
        products = features @ self._features[rows].T
        return products * self.values[rows][:, outputs].T

    def prepare_all(self, features: np.ndarray):
        """Prepares `class_scores` of `m` queries with features `[m, f]`."""
        return features

    def class_scores(self, prepared, rows: slice) -> np.ndarray:
        """The scores `[m, c, k]` for every output."""
        products = prepared @ self._features[rows].T
        return products[:, :, np.newaxis] * self.values[rows]


class LocalExpansion:
    """Representer points by Local Jacobian Expansion (Sui et al. 2021).

    With `g(W) = (1/n) Σ_i ∇ℓ_i(W)` and H its Jacobian, the point where g
    vanishes is, to first order around the layer's weights Θ,

        Σ_i w_i = Θ − H⁻¹ g(Θ),  w_i = Θ/n − (1/n) H⁻¹ (f_iᵀ ∂ℓ_i/∂φ_i)

    which in the paper's notation is `α_i = Θ/(n f_i) − (1/n) H⁻¹ ∂ℓ_i/∂φ_i`
    with `w_i = f_iᵀ α_i`. The paper first steps a little off the trained
    weights, so that there is a gradient to expand; here Θ are the weights as
    they are, whose gradient in a network is not zero. To first order in that
    step the sum is the same. H has 2λ added to its diagonal, for it is
    singular under a softmax and wherever a feature is always zero.

    The first term is the same for every training example. The order of the
    scores is that of influence functions of the last layer on the logit.

    Args:
        objective: the layer's objective; its λ damps H.
        weights: Θ, `[f, k]`.
        memory_limit: bytes that H and its factor may take.

    Attributes:
        total: Σ_i w_i, `[f, k]`.

    Raises:
        ValueError: if H does not fit the memory limit, or is not positive
            definite at this λ.
    """

    def __init__(
        self, objective: Objective, weights: np.ndarray, memory_limit: int
    ):
        check_hessian_fits(weights.size, memory_limit)
        self._objective, self._weights = objective, weights
        self._features = objective.train.features
        self._count = len(self._features)
        self._gradients = objective.logit_gradients(weights)
        self._factor = _factorize_hessian(objective, weights)
        gradient = self._features.T @ self._gradients / self._count
        self.total = weights - self._solve(gradient[np.newaxis])[0]

    @functools.cached_property
    def _own(self) -> np.ndarray:
        """The scores of each example for its own outputs, `[n, k]`."""
        own = self._features @ self._weights / self._count
        size = max(1, 2**24 // self._weights.size)
        for start in range(0, self._count, size):
            rows = slice(start, start + size)
            features = self._features[rows]
            gradients = np.einsum("nf,nk->nfk", features, self._gradients[rows])
            solved = self._solve(gradients)
            own[rows] -= np.einsum("nf,nfk->nk", features, solved) / self._count
        return own

    @functools.cached_property
    def values(self) -> np.ndarray:
        """`f_i w_i / ‖f_i‖²`, `[n, k]`.

        It is the α for which `f_iᵀ α_i` scores the example itself as `w_i`
        does.
        """
        lengths = np.einsum("nf,nf->n", self._features, self._features)
        lengths[lengths == 0] = 1
        return self._own / lengths[:, np.newaxis]

    @functools.cached_property
    def importance(self) -> np.ndarray:
        """‖f_i w_i‖ over the outputs, `[n]`."""
        return np.linalg.norm(self._own, axis=1)

    def prepare(self, features: np.ndarray, outputs: np.ndarray):
        """Prepares `scores` of `m` queries' outputs.

        Args:
            features: the queries' features, `[m, f]`.
            outputs: the output that each asks about, `[m]`.
        """
        # ∂φ_c/∂W is the query's features in column c; H is symmetric, so one
        # solution for each query serves every training example.
        directions = np.zeros((len(features), *self._weights.shape))
        directions[np.arange(len(features)), :, outputs] = features
        logits = np.take_along_axis(
            features @ self._weights, outputs[:, np.newaxis], axis=1
        )
        return logits, self._solve(directions)

    def scores(self, prepared, rows: slice) -> np.ndarray:
        """The scores `[m, c]` of the training examples in `rows`."""
        logits, solved = prepared
        scores = np.tile(logits, (1, len(self._features[rows])))
        for output in range(self._weights.shape[1]):
            along = solved[:, :, output] @ self._features[rows].T
            scores -= along * self._gradients[rows, output]
        return scores / self._count

    def prepare_all(self, features: np.ndarray):
        """Prepares `class_scores` of `m` queries with features `[m, f]`."""
        return [
            self.prepare(features, np.full(len(features), output))
            for output in range(self._weights.shape[1])
        ]

    def class_scores(self, prepared, rows: slice) -> np.ndarray:
        """The scores `[m, c, k]` for every output."""
        return np.stack([self.scores(p, rows) for p in prepared], axis=-1)

    def _solve(self, stack: np.ndarray) -> np.ndarray:
        """H⁻¹ times each of `[b, f, k]`."""
        columns = stack.transpose(2, 1, 0).reshape(-1, len(stack))
        solved = scipy.linalg.cho_solve(self._factor, columns)
        shape = (*self._weights.shape[::-1], len(stack))
        return solved.reshape(shape).transpose(2, 1, 0)


def check_hessian_fits(size: int, memory_limit: int) -> None:
    """Raises ValueError if the Hessian of `size` weights exceeds the limit."""
    needed = 3 * 8 * size**2
    if needed > memory_limit:
        raise ValueError(
            f"`method='lje'` needs {needed / 2**30:,.1f} GiB for the Hessian "
            f"of a last layer with {size:,} weights, more than the memory "
            f"limit of {memory_limit / 2**30:,.1f} GiB. Use `method='l2'`, or "
            "raise `memory_limit`."
        )


def _factorize_hessian(objective: Objective, weights: np.ndarray):
    """The Cholesky factor of ∇²J, with rows in the order (output, feature)."""
    inputs, outputs = weights.shape
    hessian = np.zeros((outputs, inputs, outputs, inputs))
    for block, curvatures in objective.curvatures(weights):
        features = block.features
        for c in range(outputs):
            for d in range(c, outputs):
                scaled = features * curvatures[:, c, d, np.newaxis]
                hessian[c, :, d, :] += scaled.T @ features
    hessian /= len(objective.train)
    for c in range(outputs):
        for d in range(c):
            hessian[c, :, d, :] = hessian[d, :, c, :].T
    flat = hessian.reshape(weights.size, weights.size)
    flat[np.diag_indices_from(flat)] += 2 * objective.l2
    try:
        return scipy.linalg.cho_factor(flat, lower=True, overwrite_a=True)
    except scipy.linalg.LinAlgError as error:
        raise ValueError(
            "The Hessian of the last layer is not positive definite at "
            f"l2={objective.l2}. Choose a larger `l2`, or `method='l2'`."
        ) from error
