"""Rows for an index: sketches at checkpoints, or sides of a sketched inverse.

TracIn's rows are sketches of gradients by one projection (Pruthi et al. 2020,
section C). Influence functions (section A.1) with S ≈ (H + λI)⁻¹Gᵀ score z for
z' by (Sᵀ∇ℓ(z)) · (G∇ℓ(z')): one side makes rows and the other makes vectors, at
the weights that the model has.

Synopsis:

    recipe = checkpoint_rows(
        engine, checkpoints, kt.TensorSketch(1024),
        plain=True, exact=exact,
    )
    recipe = inverse_rows(engine, solver, settings, make_inverse, None, keep)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.solvers.randomized_sketch import (
    InverseSketch,
    RandomizedSketch,
)
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.identity import identity as identity_of
from keras_tracin.engine.updated import unequal_shares
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Weights, digest_of
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import Factors
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.projection import (
    FactoredProjection,
    Projection,
    TensorSketch,
    check_projection,
    describe,
)
from keras_tracin.results import Attribution
from keras_tracin.runs.manifest import weights_digest
from keras_tracin.storage import files

INVERSE = "inverse.npz"


def checkpoint_rows(
    engine: Engine,
    checkpoints: Weights,
    projection: Projection | None,
    *,
    plain: bool,
    exact: Callable[[np.ndarray, Any], Attribution],
) -> RowRecipe:
    """Rows of TracIn: one sketch at each checkpoint.

    Args:
        engine: the model with its training data and losses.
        checkpoints: the checkpoints to visit, and their learning rates.
        projection: makes the sketches, `TensorSketch(1024)` by default.
        plain: whether scores are products of plain gradients.
        exact: as in `RowRecipe`.

    Raises:
        TypeError: if nothing can be projected by such a projection.
        ValueError: if method and projection do not go together.
    """
    if projection is None:
        projection = TensorSketch(1024)
    check_joint(projection)
    if engine.projection is not None:
        raise ValueError(
            "An index is built from exact gradients. Received a TracIn with "
            f"projection={engine.projection!r}: leave it out there and give "
            "it to `build`."
        )
    if not plain:
        raise ValueError(
            "An index holds plain gradients. Received a TracIn with "
            "`optimizer_aware=` or `normalize=`; leave them out."
        )
    if engine.shares is not None:
        raise ValueError(unequal_shares("An index"))
    identity = {
        **identity_of(engine),
        "method": "TracIn",
        "projection": describe(projection),
        **describe_checkpoints(checkpoints),
    }
    return RowRecipe(
        engine,
        checkpoints,
        projection,
        projection,
        identity,
        exact,
        projection=projection,
    )


def check_joint(projection: Any) -> None:
    """Raises an error unless a projection makes one vector of a gradient.

    Raises:
        TypeError: if nothing can be projected by it.
        ValueError: if it keeps its sides apart.
    """
    check_projection(projection)
    if isinstance(projection, FactoredProjection) and not projection.joint:
        raise ValueError(
            "Neighbours can be searched among sketches only, not among "
            f"sides kept apart. Received: projection={projection!r}; leave "
            "out `joint=False`."
        )


def describe_checkpoints(checkpoints: Weights) -> dict[str, Any]:
    """The checkpoints of an index and their run, entries of its identity.

    Args:
        checkpoints: the checkpoints, each with its factor.
    """
    visited = [
        {
            "step": checkpoint.step,
            "epoch": checkpoint.epoch,
            "sha256": digest_of(checkpoint),
            "rate": rate,
        }
        for checkpoint, rate in checkpoints.items()
        if checkpoint is not None
    ]
    run = hashlib.sha256(json.dumps(visited).encode()).hexdigest()
    return {"checkpoints": visited, "run": run}


def inverse_rows(
    engine: Engine,
    solver: Any,
    settings: dict[str, Any],
    make_inverse: Callable[[], Any],
    projection: Projection | None,
    keep: Keep,
) -> RowRecipe:
    """Rows of influence functions with a sketched inverse.

    Args:
        engine: the model with its training data and losses.
        solver: solver of the influence functions.
        settings: their other options, as JSON.
        make_inverse: returns the solver, made ready.
        projection: None: the sketch is the projection.
        keep: keeps the sketch.

    Raises:
        ValueError: if there is no such inverse, or an option has no effect.
    """
    if not isinstance(solver, RandomizedSketch | InverseSketch):
        raise ValueError(
            "An index of influence functions is made by EK-FAC or by a "
            f"sketched inverse. Received: solver={solver!r}. Give "
            "InfluenceFunctions `solver=kt.EKFAC()`, its default, or "
            "`kt.RandomizedSketch(dim)`."
        )
    if projection is not None or settings["relative"] is not None:
        raise ValueError(
            "The sketched inverse is the projection of influence functions, "
            f"and its scores are not relative. Received: {projection=}, "
            f"relative={settings['relative']!r}. Leave these out."
        )

    def save(path: Path) -> None:
        make_inverse().save(path)

    # Loaded also where it has just been saved: a resumed build has the same
    # bits.
    path = keep(INVERSE, save, engine.execution.strategy)
    of_train, of_query = inverse_sides(InverseSketch.load(path))
    identity = {
        **identity_of(engine),
        "method": "InfluenceFunctions",
        **{name: settings[name] for name in settings if name != "solver"},
        "weights": weights_digest(engine.model),
        "solver": _describe_solver(solver),
        "inverse": files.digest(path),
        "checkpoints": [],
    }
    return RowRecipe(engine, PRESENT_WEIGHTS, of_train, of_query, identity)


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """One side of a sketched inverse, as a projection.

    Attributes:
        apply: `[n, p] -> [n, dim]`, takes whole gradients.
        dim: number of rows of G.
        dtype: dtype of the sketch.
    """

    apply: Callable[[tf.Tensor], tf.Tensor]
    dim: int
    dtype: tf.DType

    def sketch(
        self, factors: Sequence[Factors], position: tf.Tensor | int = 0
    ) -> tf.Tensor:
        """Makes this side `[n, dim]` of `n` examples' gradients."""
        return self.apply(tf.cast(flat.rows(factors), self.dtype))


def inverse_sides(sketch: InverseSketch) -> tuple[_Side, _Side]:
    """The sides of a sketched inverse that make rows and vectors."""
    dim, dtype = sketch.rows.shape[0], sketch.rows.dtype
    return _Side(sketch.embed, dim, dtype), _Side(sketch.project, dim, dtype)


def _describe_solver(solver: RandomizedSketch | InverseSketch) -> dict:
    if isinstance(solver, RandomizedSketch):
        return dataclasses.asdict(solver)
    return {"dim": int(solver.rows.shape[0]), "seed": solver.seed}
