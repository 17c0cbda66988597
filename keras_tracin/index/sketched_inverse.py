"""Influence functions as rows and vectors (section A.1).

With S ≈ (H + λI)⁻¹Gᵀ the score of z for z' is (Sᵀ∇ℓ(z)) · (G∇ℓ(z')): a row
for each training example, a vector for a query, at the weights that the model
has.

Synopsis:

    source = source_of_influence(method, None, directory)
    of_train, of_query = sides(InverseSketch.load(directory / INVERSE))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from keras_tracin.curvature.solvers.randomized_sketch import (
    InverseSketch,
    RandomizedSketch,
)
from keras_tracin.engine.distribution import worker_of
from keras_tracin.engine.identity import identity
from keras_tracin.engine.visits import PRESENT_WEIGHTS
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import Factors
from keras_tracin.index.source import Source
from keras_tracin.index.store import FILE_NAME, wait_for_store
from keras_tracin.methods.influence import InfluenceFunctions
from keras_tracin.projection import Projection
from keras_tracin.runs.manifest import weights_digest
from keras_tracin.storage import files

INVERSE = "inverse.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """One side of a sketched inverse, as a projection.

    Attributes:
        apply: `[n, p] -> [n, dim]`, of whole gradients.
        dim: rows of G.
        dtype: of the sketch.
    """

    apply: Callable[[tf.Tensor], tf.Tensor]
    dim: int
    dtype: tf.DType

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Makes this side `[n, dim]` of `n` examples' gradients."""
        return self.apply(tf.cast(flat.rows(factors), self.dtype))


def sides(sketch: InverseSketch) -> tuple[_Side, _Side]:
    """What makes rows, and what makes vectors, of a sketched inverse."""
    dim, dtype = sketch.rows.shape[0], sketch.rows.dtype
    return _Side(sketch.embed, dim, dtype), _Side(sketch.project, dim, dtype)


def source_of_influence(
    method: InfluenceFunctions, projection: Projection | None, directory: Path
) -> Source:
    """What an index needs to know of influence functions.

    Args:
        method: with a sketched inverse.
        projection: None.
        directory: that of the index; the sketch is kept there.

    Raises:
        ValueError: if there is no such inverse, or an option has no effect.
    """
    solver, settings = method.solver, method.settings
    if not isinstance(solver, RandomizedSketch | InverseSketch):
        raise ValueError(
            "An index of influence functions is made of a sketched inverse. "
            f"Received: solver={solver!r}. Give InfluenceFunctions "
            "`solver=kt.RandomizedSketch(dim)`."
        )
    if projection is not None or settings["relative"] is not None:
        raise ValueError(
            "The sketched inverse is the projection of influence functions, "
            f"and its scores are not relative. Received: {projection=}, "
            f"relative={settings['relative']!r}. Leave these out."
        )
    path = directory / INVERSE
    wait_for_store(directory, worker_of(method.engine.execution.strategy))
    if not (directory / FILE_NAME).is_file():
        sketch = method.inverse
        assert isinstance(sketch, InverseSketch)
        directory.mkdir(parents=True, exist_ok=True)
        sketch.save(path)
    # Also what was saved just now: a resumed build has the same bits.
    of_train, of_query = sides(InverseSketch.load(path))
    engine = method.engine
    described = {
        **identity(engine),
        "method": "InfluenceFunctions",
        **settings,
        "weights": weights_digest(engine.model),
        "solver": _described(solver),
        "inverse": files.digest(path),
        "checkpoints": [],
    }
    return Source(engine, PRESENT_WEIGHTS, of_train, of_query, described)


def _described(solver: RandomizedSketch | InverseSketch) -> dict[str, Any]:
    if isinstance(solver, RandomizedSketch):
        return dataclasses.asdict(solver)
    return {"dim": int(solver.rows.shape[0]), "seed": solver.seed}
