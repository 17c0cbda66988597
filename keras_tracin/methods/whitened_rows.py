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
    train, query = sides(identity, directory, TensorSketch(1024))
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
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
from keras_tracin.methods.index_rows import check_joint, describe_checkpoints
from keras_tracin.methods.indexable import Keep, RowRecipe
from keras_tracin.projection import Projection, TensorSketch, describe
from keras_tracin.projection.mapped import (
    Entries,
    Mapped,
    leading_directions,
    rotation,
)
from keras_tracin.results import Attribution
from keras_tracin.runs import Checkpoint, run_weights
from keras_tracin.runs.manifest import weights_digest
from keras_tracin.storage import files
from keras_tracin.storage.arrays import load_arrays, save_arrays

DIM = 1024  # numbers of a row at a checkpoint
_WIDE = 65_536  # entries that directions are made of
_SAMPLE = 4_096  # examples, or twice as many as directions
_NUMBERS = 2**28  # of a sample, in memory
_TAKEN = 2**24  # of whole gradients, at a time

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

    def save_inverse(path: Path, checkpoint: Checkpoint | None) -> None:
        fit()
        inverse = inverses.at(checkpoint)
        assert isinstance(inverse, EKFACInverse)
        inverse.save(path)

    kept = [
        keep(
            _factors_file(at),
            functools.partial(save_inverse, checkpoint=checkpoint),
            strategy,
        )
        for at, checkpoint in enumerate(checkpoints)
    ]
    whitening = Whitening.of(list(map(EKFACInverse.load, kept)))
    if isinstance(projection, TensorSketch) and projection.dim < whitening.size:
        sample = _Sample(engine, inverses, whitening, projection.dim)
        kept += [
            keep(
                _directions_file(at),
                functools.partial(
                    sample.save, checkpoint=checkpoint, position=at
                ),
                strategy,
            )
            for at, checkpoint in enumerate(checkpoints)
        ]
    at_present = checkpoints is PRESENT_WEIGHTS
    identity = {
        **identity_of(engine),
        "method": "InfluenceFunctions",
        **settings,
        "weights": weights_digest(engine.model) if at_present else None,
        "projection": describe(projection),
        **describe_checkpoints(checkpoints),
        "files": {path.name: files.digest(path) for path in kept},
    }
    train, query = sides(identity, kept[0].parent, projection, whitening)

    def exact_by_kept(ids: np.ndarray, test: Any) -> Attribution:
        known = {c: whitening.at(at) for at, c in enumerate(checkpoints)}
        return exact(ids, test, known)

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
        exact_by_kept,
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
    matrices = []
    chosen = []
    for name in map(_directions_file, range(count)):
        if name in identity["files"]:
            arrays = load_arrays(directory / name, _REMEDY)
            matrices.append(tf.constant(arrays["basis"]))
            if "chosen" in arrays:
                chosen.append(tf.constant(arrays["chosen"]))
    inner = projection
    if isinstance(projection, TensorSketch):
        inner = Entries(chosen or None, whitening.size)

    def side(of_queries: bool) -> Projection:
        whitened = Whitened(whitening, inner, of_queries)
        return Mapped(whitened, matrices) if matrices else whitened

    return side(False), side(True)


class _Sample:
    """Whitened gradients of some training examples, and their directions.

    Args:
        engine: the model with its training data.
        inverses: the inverses at the checkpoints.
        whitening: the same, as they are kept.
        dim: number of directions.
    """

    def __init__(
        self, engine: Engine, inverses: Inverses, whitening: Whitening, dim: int
    ):
        self._engine, self._inverses = engine, inverses
        self._dim, self._size = dim, whitening.size
        self._count = max(_SAMPLE, 2 * dim)
        self._width = min(_WIDE, max(_NUMBERS // self._count, 2 * dim))
        self._whole = Whitened(whitening, Entries(None, whitening.size))

    @functools.cached_property
    def _step(self) -> Callable:
        return sketches(self._engine.train_steps, self._whole)

    def save(
        self, path: Path, checkpoint: Checkpoint | None, position: int
    ) -> None:
        """Writes the directions at a checkpoint.

        Of more entries than can be held, those are taken that have most of
        the squared length.

        Args:
            path: the file.
            checkpoint: the checkpoint.
            position: its position.
        """
        arrays: dict[str, np.ndarray] = {}
        chosen: Any = slice(None)
        with run_weights(self._engine.model) as load:
            if checkpoint is not None:
                load(checkpoint)
            if self._size > self._width:
                squares = sum(
                    np.sum(np.square(rows), axis=0, dtype=np.float64)
                    for rows in self._rows(position)
                )
                order = np.argsort(-squares, kind="stable")
                chosen = np.sort(order[: self._width]).astype(np.int32)
                arrays["chosen"] = chosen
            rows = [rows[:, chosen] for rows in self._rows(position)]
        basis = leading_directions(np.concatenate(rows), self._dim)
        basis = basis @ rotation(basis.shape[1]).astype(basis.dtype)
        save_arrays(path, {**arrays, "basis": basis})

    def _rows(self, position: int) -> Iterator[np.ndarray]:
        """Whole gradients of the sample, some at a time."""
        size = self._engine.train.expected_size or self._count
        every = max(1, size // self._count)
        held = self._inverses.operator.held
        left = self._count
        for data in held.spread(every, max(1, min(256, _TAKEN // self._size))):
            rows = self._step(data, np.int32(position)).numpy()
            yield rows[:left]
            left -= len(rows)
            if left <= 0:
                return


def _factors_file(position: int) -> str:
    return f"factors-{position:03d}.npz"


def _directions_file(position: int) -> str:
    return f"directions-{position:03d}.npz"
