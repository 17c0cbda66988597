"""Random projections of gradients (Pruthi et al. 2020, sections E and F).

A projection has a seed and a length. It maps the factors of an example's
gradient, over all layers, to one sketch `[dim]`; inner products of sketches are
unbiased estimates of inner products of gradients. Nothing of size parameters ×
`dim` is ever stored: random numbers are generated where they are needed, from
the seed, the checkpoint's position, the group of variables and a counter. Every
checkpoint has its own random numbers: gradients at neighbouring checkpoints are
similar, and independent errors average out.

Any object with `dim` and a method `sketch` can be used as a projection.

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
        dim: length of a sketch, which covers the whole model at one checkpoint.
    """

    @property
    def dim(self) -> int:
        """Length of a sketch."""

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Sketches `[n, dim]` of `n` examples' gradients.

        Args:
            factors: factors of all groups of variables, in the model's order.
            position: position of the checkpoint among those in use.
        """


def project(
    projection: Projection,
    factors: Sequence[Factors],
    position: tf.Tensor | int = 0,
) -> tuple[Any, ...]:
    """Projects factors; inner products of the results are estimates.

    The results are sketches, in the form of gradients with `dim` entries; with
    `FactoredProjection(joint=False)`, they are two projected sides for each
    group.
    """
    if isinstance(projection, FactoredProjection) and not projection.joint:
        return projection.sides(factors, position)
    return (DenseGradients((projection.sketch(factors, position),)),)


def check_projection(projection: Any) -> None:
    """Raises TypeError unless it is a projection."""
    if not hasattr(projection, "dim") or not callable(
        getattr(projection, "sketch", None)
    ):
        raise TypeError(
            "`projection` should be a projection such as "
            "`kt.TensorSketch(dim=1024, seed=0)`. Received: "
            f"{projection!r}."
        )


def describe(projection: Projection) -> dict[str, Any]:
    """Class and fields of a projection, as files record them."""
    fields = (
        dataclasses.asdict(projection)
        if dataclasses.is_dataclass(projection)
        else {"dim": projection.dim}
    )
    return {"class": type(projection).__name__, **fields}
