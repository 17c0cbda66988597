"""A randomized sketch of the inverse (Pruthi et al. 2020, section A.1).

With a Gaussian G `[d, p]`, E[GᵀG] = I, the sketch S = (H + λI)⁻¹Gᵀ takes O(dp)
memory and `[S][G∇ℓ(z')]` is an unbiased estimate of (H + λI)⁻¹∇ℓ(z'). S solves
`min ‖(H + λI)S − Gᵀ‖²_F`, by stochastic gradients with two independent
minibatches (eq. 3) or by conjugate gradients. It is computed once and serves
any query.

Synopsis:

    sketch = RandomizedSketch(dim=500).prepare(Damped(hessian, 0.1))
    sketch(rows).value                 # [m, p]
    sketch.save("inverse.npz"); InverseSketch.load("inverse.npz")
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.operators import Operator
from keras_tracin.curvature.solvers.cg import CG
from keras_tracin.curvature.solvers.solution import Solution, solve
from keras_tracin.curvature.spectrum import extreme_eigenvalues
from keras_tracin.engine.execution import default_memory_limit
from keras_tracin.storage.arrays import load_arrays, save_arrays

_BLOCK = 64  # rows of G from one state of the generator
_COPIES = 6  # arrays of S's size that the descent holds at the same time
_CHECKS = 20  # estimates of the residual
_PROBES = 3  # minibatches whose largest eigenvalue is estimated


def gaussian_rows(dim: int, size: int, seed: int, dtype: tf.DType) -> tf.Tensor:
    """G `[dim, size]` with entries N(0, 1/dim), the same on any device."""
    blocks = [
        tf.random.stateless_normal(
            [min(_BLOCK, dim - start), size],
            seed=[seed, start // _BLOCK],
            dtype=dtype,
            alg="philox",
        )
        for start in range(0, dim, _BLOCK)
    ]
    return tf.concat(blocks, axis=0) / math.sqrt(dim)


@dataclasses.dataclass(frozen=True)
class RandomizedSketch:
    """A solver that sketches the inverse once, for any right-hand side.

    The random G alone gives a query's scores an error of about
    `√(p / dim)` of their length where the curvature is far below λ, with a
    perfect S: this is the method. `Arnoldi` and `CG` have no such error.

    Descent squares the condition number. So S starts at Gᵀ/λ, which is right
    where the curvature is far below λ; the step size follows from the largest
    eigenvalue that minibatches have; there is momentum; the minibatches grow
    fourfold over the descent; and the mean over its last quarter is kept.

    Attributes:
        dim: d, number of rows of G.
        seed: seed of G and of the minibatches.
        method: `"sgd"`, the paper's, or `"cg"`, block conjugate gradients.
        steps: number of steps of the descent, or the largest number of those
            of the conjugate gradients.
        batch_size: examples in each of the two minibatches, at first.
        momentum: momentum of the descent, between 0 and 1.
        tol: residual up to which the sketch counts as converged.
    """

    dim: int
    seed: int = 0
    method: str = "sgd"
    steps: int = 1000
    batch_size: int = 128
    momentum: float = 0.9
    tol: float = 0.2

    def __post_init__(self):
        if self.dim < 1 or self.steps < 1 or self.batch_size < 1:
            raise ValueError(
                "`dim`, `steps` and `batch_size` should be 1 or more. "
                f"Received: dim={self.dim!r}, steps={self.steps!r}, "
                f"batch_size={self.batch_size!r}."
            )
        if self.method not in ("sgd", "cg") or not 0 <= self.momentum < 1:
            raise ValueError(
                "`method` should be 'sgd' or 'cg', `momentum` at least 0 and "
                f"below 1. Received: method={self.method!r}, "
                f"momentum={self.momentum!r}."
            )

    def prepare(self, operator: Operator) -> InverseSketch:
        """Computes the sketch.

        Args:
            operator: the matrix to invert, damping included.

        Raises:
            ValueError: if it takes more memory than there is.
        """
        size, dtype = operator.size, operator.dtype
        needed = _COPIES * self.dim * size * dtype.size
        if needed > 2 * default_memory_limit():
            raise ValueError(
                f"A sketch of dim={self.dim:,} for {size:,} numbers takes "
                f"{needed / 2**30:,.1f} GB while it is made, more than is "
                "free. Choose a smaller `dim`, or name fewer `layers=`."
            )
        rows = gaussian_rows(self.dim, size, self.seed, dtype)
        if self.method == "cg":
            solution = solve(operator, rows, CG(1e-3, self.steps))
            history = [(solution.steps, float(np.max(solution.residual)))]
            negative = solution.negative_curvature
            sketch = solution.value
        else:
            sketch, history, negative = self._descend(operator, rows)
        return InverseSketch(
            sketch, self.seed, np.array(history), self.tol, bool(negative)
        )

    def _descend(self, operator: Operator, rows: tf.Tensor):
        """Descends by eq. 3 with momentum.

        Returns:
            Sᵀ, its residuals `[(step, residual), ...]`, and whether a negative
            eigenvalue was seen.
        """
        rng = np.random.default_rng([self.seed, 1])
        checks = np.random.default_rng([self.seed, 2])
        smallest, largest = extreme_eigenvalues(operator)
        for _ in range(_PROBES):
            sample = operator.sample(rng, self.batch_size)
            largest = max(largest, extreme_eigenvalues(sample, 10)[1])
        step_size = (1 - self.momentum / 2) / largest**2
        value = rows / (operator.damping or largest)
        velocity = tf.zeros_like(value)
        total, kept = tf.zeros_like(value), 0
        history: list[tuple[int, float]] = []
        every = max(1, self.steps // _CHECKS)
        for step in range(1, self.steps + 1):
            batch = int(self.batch_size * 4 ** (step / self.steps))
            gradient = stochastic_gradient(operator, value, rows, rng, batch)
            velocity = self.momentum * velocity - step_size * (gradient / 2)
            value += velocity
            if step > self.steps - max(1, self.steps // 4):
                total, kept = total + value, kept + 1
            if step % every == 0 or step == self.steps:
                current = total / kept if kept else value
                held_out = _estimate_residual(
                    operator, current, rows, checks, 4 * self.batch_size
                )
                history.append((step, held_out))
        return total / kept, history, smallest <= 0


def stochastic_gradient(
    operator: Operator,
    sketch: tf.Tensor,
    rows: tf.Tensor,
    rng: np.random.Generator,
    batch_size: int,
) -> tf.Tensor:
    """An unbiased estimate of `2A(AS − Gᵀ)`, as rows `[d, p]` (eq. 3).

    It takes two independent minibatches: with one, the expectation of the
    product would be that of a square, which is larger.
    """
    outer = operator.sample(rng, batch_size)
    inner = operator.sample(rng, batch_size)
    return 2 * outer.matmat(inner.matmat(sketch) - rows)


def _estimate_residual(operator, sketch, rows, rng, batch_size: int) -> float:
    """`‖AS − Gᵀ‖ / ‖G‖` on two minibatches that no step has used.

    The product of two independent errors: squaring that of one minibatch would
    count its noise as an error of the sketch.
    """
    errors = [
        operator.sample(rng, batch_size).matmat(sketch) - rows for _ in range(2)
    ]
    square = float(tf.reduce_sum(errors[0] * errors[1])) / float(
        tf.reduce_sum(rows * rows)
    )
    return math.sqrt(max(square, 0.0))


@dataclasses.dataclass(frozen=True, eq=False)
class InverseSketch:
    """S = (A)⁻¹Gᵀ for one operator A, ready for any right-hand side.

    Attributes:
        rows: Sᵀ `[d, p]`.
        seed: seed of G.
        history: `[k, 2]`, numbers of steps and the residuals `‖AS − Gᵀ‖/‖G‖`
            after them, on held-out minibatches (by conjugate gradients, the
            worst row's).
        tol: residual up to which it counts as converged.
        negative_curvature: whether a negative eigenvalue was seen.
    """

    rows: tf.Tensor
    seed: int
    history: np.ndarray
    tol: float
    negative_curvature: bool = False

    @property
    def residual(self) -> float:
        """The last estimate of `‖AS − Gᵀ‖ / ‖G‖`."""
        return float(self.history[-1, 1])

    def __call__(self, rhs: tf.Tensor) -> Solution:
        """`S G b` for each row `b` of `rhs [m, p]`."""
        rhs = tf.convert_to_tensor(rhs, self.rows.dtype)
        count = len(rhs)
        return Solution(
            value=tf.matmul(self.project(rhs), self.rows),
            converged=np.full(count, self.residual <= self.tol),
            steps=int(self.history[-1, 0]),
            residual=np.full(count, self.residual),
            negative_curvature=self.negative_curvature,
        )

    def project(self, gradients: tf.Tensor) -> tf.Tensor:
        """`G g` for each row, `[m, d]`: a query's side of the sketch.

        Args:
            gradients: `[m, p]`.
        """
        return tf.matmul(gradients, self._gaussian, transpose_b=True)

    @functools.cached_property
    def _gaussian(self) -> tf.Tensor:
        dim, size = self.rows.shape
        return gaussian_rows(dim, size, self.seed, self.rows.dtype)

    def embed(self, gradients: tf.Tensor) -> tf.Tensor:
        """`Sᵀ g` for each row, `[m, d]`: a training example's side.

        Its products with `project` of queries are the scores, so these rows
        can be searched for nearest neighbours.

        Args:
            gradients: `[m, p]`.
        """
        return tf.matmul(gradients, self.rows, transpose_b=True)

    def prepare(self, operator: Operator) -> InverseSketch:
        """Itself: a loaded sketch can be given as a solver.

        Args:
            operator: the matrix that it inverts.

        Raises:
            ValueError: if it was computed for another number of weights.
        """
        if operator.size != self.rows.shape[1]:
            raise ValueError(
                f"The sketch was made for {self.rows.shape[1]:,} numbers, the "
                f"model (or its `layers=`) has {operator.size:,}. Make "
                "another with `RandomizedSketch`."
            )
        return self

    def save(self, path: str | os.PathLike) -> None:
        """Writes an `.npz` file, which appears whole or not at all."""
        save_arrays(
            Path(path),
            {
                "rows": self.rows.numpy(),
                "seed": self.seed,
                "history": self.history,
                "tol": self.tol,
                "negative_curvature": self.negative_curvature,
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike) -> InverseSketch:
        """Reads what `save` wrote; it is right at the weights of that time.

        Raises:
            ValueError: if the file holds something else.
        """
        held = load_arrays(
            path,
            "Expected a file that `InverseSketch.save` wrote.",
            names=[field.name for field in dataclasses.fields(cls)],
            what="sketch of an inverse",
        )
        return cls(
            rows=tf.constant(held["rows"]),
            seed=int(held["seed"]),
            history=held["history"],
            tol=float(held["tol"]),
            negative_curvature=bool(held["negative_curvature"]),
        )
