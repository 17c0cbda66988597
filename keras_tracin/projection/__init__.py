"""Random projections: a model's gradients as short vectors (sections E, F).

A projection is a seed and a length. It turns the factors of every example's
gradient, over all layers, into one sketch `[dim]` whose inner products are
unbiased estimates of the gradients' own. Nothing of the size of parameters ×
`dim` is ever stored: what is random is made again wherever it is needed, from
the seed, the checkpoint's position among those visited, the group of variables
and a counter. Each checkpoint has random numbers of its own: gradients at
neighbouring checkpoints are alike, and independent errors average out.

Anything with a `dim` and the method `sketch` serves as a projection.

Synopsis:

    projection = TensorSketch(dim=1024, seed=0)
    sketches = projection.sketch(captured.factors, position=3)  # [n, 1024]
    scores = sketches @ tf.transpose(others)                    # [n, m]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients, Factors
from keras_tracin.projection.factored import FactoredProjection
from keras_tracin.projection.gaussian import GaussianProjection
from keras_tracin.projection.tensor_sketch import TensorSketch

__all__ = [
    "FactoredProjection",
    "GaussianProjection",
    "Projection",
    "TensorSketch",
    "check_projection",
    "describe",
    "project",
]


class Projection(Protocol):
    """A random linear map from gradients to short vectors.

    Attributes:
        dim: the length of one checkpoint's sketch of the whole model.
    """

    @property
    def dim(self) -> int:
        """The length of a sketch."""

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Sketches `[n, dim]` of `n` examples' gradients.

        Args:
            factors: those of all groups of variables, in the model's order.
            position: the checkpoint's, among those that are visited.
        """


def project(
    projection: Projection,
    factors: Sequence[Factors],
    position: tf.Tensor | int = 0,
) -> tuple[Any, ...]:
    """Factors whose inner products estimate those of the given ones.

    As a rule these are the sketches, as gradients of `dim` numbers; with
    `FactoredProjection(joint=False)` each group's two sides apart.
    """
    if isinstance(projection, FactoredProjection) and not projection.joint:
        return projection.sides(factors, position)
    return (DenseGradients((projection.sketch(factors, position),)),)


def check_projection(projection: Any) -> None:
    """Raises TypeError unless it can serve as a projection."""
    if not hasattr(projection, "dim") or not callable(
        getattr(projection, "sketch", None)
    ):
        raise TypeError(
            "`projection` should be a projection such as "
            "`kt.TensorSketch(dim=1024, seed=0)`. Received: "
            f"{projection!r}."
        )


def describe(projection: Projection) -> dict[str, Any]:
    """Class and fields, as a file records them."""
    fields = (
        dataclasses.asdict(projection)
        if dataclasses.is_dataclass(projection)
        else {"dim": projection.dim}
    )
    return {"class": type(projection).__name__, **fields}
