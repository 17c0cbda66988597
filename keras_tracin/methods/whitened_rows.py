"""Rows of influence functions by EK-FAC, for an index.

A score is the inner product of a training example's gradient and a query's,
both times a root of the inverse curvature, at each checkpoint. What is kept of
these are their products with the directions in which those of a sample of the
training examples are longest: they point nearly all into a few hundred
directions, while a random projection has noise from all of their length. The
inverses and the directions are files beside the rows, so that vectors of later
queries are made with the same ones.

Synopsis:

    recipe = whitened_rows(engine, checkpoints, inverses, fit, settings,
                           projection=None, keep=keep, exact=exact)
    train, query = sides(identity, directory, projection=None)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.curvature.inverses import Inverses
from keras_tracin.curvature.solvers.ekfac import EKFACInverse
from keras_tracin.curvature.whitening import Whitened, Whitening
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.identity import identity as identity_of
from keras_tracin.engine.sketch_steps import sketches
from keras_tracin.engine.visits import PRESENT_WEIGHTS, Visit, Weights
from keras_tracin.methods.index_rows import (
    check_joint,
    describe_checkpoints,
    keep_files,
)
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.projection import Projection, TensorSketch, describe
from keras_tracin.projection.mapped import Mapped, leading_directions
from keras_tracin.results import Attribution
from keras_tracin.runs import Checkpoint, run_weights
from keras_tracin.runs.manifest import weights_digest
from keras_tracin.storage.arrays import load_arrays, save_arrays

DIM = 1024  # numbers of a row at a checkpoint
WIDE = 65_536  # numbers among whose directions those of a row are chosen
_SAMPLE = 2  # examples for each direction
_BATCH = 256

_REMEDY = "Delete the index and build it anew."

# `(ids, test, inverses by checkpoint) -> Attribution`
Exact = Callable[
    [np.ndarray, Any, Mapping[Checkpoint | None, EKFACInverse]], Attribution
]


def whitened_rows(
    engine: Engine,
    checkpoints: Weights,
    inverses: Inverses,
    fit: Callable[[], None],
    settings: dict[str, Any],
    *,
    projection: Projection | None,
    keep: Keep,
    exact: Exact,
) -> RowRecipe:
    """Rows of influence functions whose inverse is that of EK-FAC.

    Args:
        engine: the model with its training data and losses.
        checkpoints: the checkpoints whose mean is scored.
        inverses: the inverses at the checkpoints.
        fit: prepares them.
        settings: options of the method, as JSON.
        projection: a `TensorSketch` says how many numbers a row has; any
            other is the projection of what is whitened. By default
            `TensorSketch(1024)`.
        keep: keeps inverses and directions.
        exact: exact scores of training examples, by the inverses that are
            kept.

    Raises:
        TypeError: if nothing can be projected by such a projection.
        ValueError: if scores are no such products.
    """
    if settings["relative"] is not None:
        raise ValueError(
            "An index of influence functions holds plain scores. Received: "
            f"relative={settings['relative']!r}. Leave it out."
        )
    projection = TensorSketch(DIM) if projection is None else projection
    check_joint(projection)
    strategy = engine.execution.strategy

    def inverse_of(checkpoint: Checkpoint | None) -> EKFACInverse:
        fit()
        return inverses.at(checkpoint)

    files = keep_files(
        keep,
        strategy,
        {
            _factors_file(at): lambda path, c=checkpoint: inverse_of(c).save(
                path
            )
            for at, checkpoint in enumerate(checkpoints)
        },
    )
    whitening = Whitening.of(list(map(EKFACInverse.load, files.paths)))
    inner, is_mapped = _inner(projection, whitening.size)
    if is_mapped:
        step = functools.cache(
            lambda: sketches(engine.train_steps, Whitened(whitening, inner))
        )
        files += keep_files(
            keep,
            strategy,
            {
                _directions_file(at): lambda path, c=checkpoint, at=at: _save(
                    path,
                    _directions(engine, inverses, step(), projection, c, at),
                )
                for at, checkpoint in enumerate(checkpoints)
            },
        )
    at_present = checkpoints is PRESENT_WEIGHTS
    identity = {
        **identity_of(engine),
        "method": "InfluenceFunctions",
        **settings,
        "weights": weights_digest(engine.model) if at_present else None,
        "projection": describe(projection),
        "width": inner.dim if inner is not None else whitening.size,
        **describe_checkpoints(checkpoints),
        "files": files.digests,
    }
    directory = files.paths[0].parent
    known = dict(
        zip(
            checkpoints,
            (whitening.at(at) for at in range(len(checkpoints))),
            strict=True,
        )
    )
    train, query = sides(identity, directory, projection, whitening)

    def directions(visit: Visit, gradients: tf.Tensor) -> tf.Tensor:
        rows = tf.cast(gradients, whitening.eigenvalues[0].dtype)
        solved = whitening.at(int(visit.position))(rows).value
        return tf.cast(solved, gradients.dtype)

    return RowRecipe(
        engine,
        checkpoints,
        train,
        query,
        identity,
        lambda ids, test: exact(ids, test, known),
        estimated=True,
        directions=directions,
        projection=projection,
    )


def sides(
    identity: dict[str, Any],
    directory: Path,
    projection: Projection,
    whitening: Whitening | None = None,
) -> tuple[Projection, Projection]:
    """What makes rows and vectors, from the files of an index.

    Args:
        identity: identity of the index.
        directory: its directory.
        projection: the one that it was built with.
        whitening: its inverses, where they have been read.
    """
    count = len(identity["checkpoints"]) or 1
    if whitening is None:
        whitening = Whitening.of(
            [
                EKFACInverse.load(directory / _factors_file(at))
                for at in range(count)
            ]
        )
    inner, is_mapped = _inner(projection, whitening.size)
    both = [
        Whitened(whitening, inner, of_queries=side) for side in (False, True)
    ]
    if is_mapped:
        matrices = [
            tf.constant(
                load_arrays(directory / _directions_file(at), _REMEDY)["basis"]
            )
            for at in range(count)
        ]
        both = [Mapped(side, matrices) for side in both]
    return both[0], both[1]


def _inner(projection: Projection, size: int) -> tuple[Projection | None, bool]:
    """What sketches whitened gradients, and whether directions are chosen.

    Args:
        projection: the caller's.
        size: number of entries of a gradient.
    """
    if not isinstance(projection, TensorSketch):
        return projection, False
    if size <= WIDE:
        return None, size > projection.dim
    wide = dataclasses.replace(projection, dim=max(WIDE, projection.dim))
    return wide, wide.dim > projection.dim


def _directions(
    engine: Engine,
    inverses: Inverses,
    step: Callable,
    projection: Projection,
    checkpoint: Checkpoint | None,
    position: int,
) -> np.ndarray:
    """The directions of rows at a checkpoint, by a sample of its sketches."""
    count = _SAMPLE * projection.dim
    size = engine.train.expected_size or count
    rows: list[np.ndarray] = []
    with run_weights(engine.model) as load:
        if checkpoint is not None:
            load(checkpoint)
        held = inverses.operator.held
        for data in held.spread(max(1, size // count), _BATCH):
            rows.append(step(data, np.int32(position)).numpy())
            if sum(map(len, rows)) >= count:
                break
    return leading_directions(np.concatenate(rows), projection.dim)


def _save(path: Path, basis: np.ndarray) -> None:
    save_arrays(path, {"basis": basis})


def _factors_file(position: int) -> str:
    return f"factors-{position:03d}.npz"


def _directions_file(position: int) -> str:
    return f"directions-{position:03d}.npz"
