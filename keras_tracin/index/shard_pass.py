"""The pass over training examples that makes the rows of an index.

Beside the rows come the exact scores of a few queries, where rows only
estimate them.

Synopsis:

    work = shard_pass(recipe, queries)
    sweep(recipe.engine, work, sink, call, chunks=chunks, plan=plan)
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.chunks import Chunk
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.sketch_steps import sketches, sketches_and_products
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.engine.visits import Visit
from keras_tracin.gradients import flat
from keras_tracin.methods.indexable import RowRecipe

_SUMS = 16  # of a row's entries, that are compared


def shard_pass(recipe: RowRecipe, queries: Batch | None) -> Pass:
    """The pass that makes rows, and exact scores where there are queries.

    What it gathers of a chunk are arrays by kind: "rows" `[n, width]` and,
    where there are queries, "exact" `[n, m]`.

    Args:
        recipe: how rows are made.
        queries: those whose exact scores are kept, if any.
    """
    options: dict[str, Any] = {
        "compared": functools.partial(_compared, recipe),
        "finish": _arrays,
        "gather": functools.partial(_Shard, recipe),
        "scores": False,
    }
    projection = recipe.train_projection
    if queries is None:
        column = None if recipe.columns is None else recipe.columns[0]
        return Pass(
            "Index",
            sketches(recipe.engine.train_steps, projection, column),
            recipe.checkpoints,
            arguments=lambda visit, prepared: (visit.position,),
            **options,
        )
    steps = recipe.engine.steps_like(queries)
    along = recipe.directions is not None
    return Pass(
        "Index",
        sketches_and_products(steps.train, steps.query, projection, along),
        recipe.checkpoints,
        prepare=lambda visit: _asked(recipe, steps.query, queries, visit),
        arguments=lambda visit, factors: (
            factors,
            visit.rate,
            visit.position,
        ),
        **options,
    )


def _asked(
    recipe: RowRecipe, steps: GradientFunctions, queries: Batch, visit: Visit
) -> tuple:
    """What training gradients are multiplied by for the exact scores."""
    if recipe.directions is None:
        return steps.query_factors(queries.data)
    rows = steps.rows(queries.data, np.float32(1))
    solved = recipe.directions(visit, rows)
    return flat.directions(solved, steps.variables)


def _compared(recipe: RowRecipe, raw: Any) -> np.ndarray:
    """What spot checks compare of a step's results, `[..., n]`.

    Where rows are made by an inverse, some entries hold nothing but rounding,
    enlarged. Random sums of all have as much of it as scores do.
    """
    rows = _arrays(raw)[0]
    if recipe.directions is None and recipe.columns is None:
        return rows
    signs = np.random.default_rng(0).choice([-1, 1], [_SUMS, len(rows)])
    return signs.astype(rows.dtype) @ rows


def _arrays(raw: Any) -> tuple[np.ndarray, ...]:
    """A step's results with the examples along the last axis."""
    parts = raw if isinstance(raw, tuple | list) else (raw,)
    return tuple(part.numpy().T for part in parts)


class _Shard:
    """Puts sketches of all checkpoints side by side, and sums exact scores.

    Args:
        recipe: how rows are made.
        chunk: examples of the shard.
    """

    def __init__(self, recipe: RowRecipe, chunk: Chunk):
        self._recipe = recipe
        self._rows = np.empty([len(chunk), recipe.width], np.float32)
        # Exact scores, or the numbers that multiply rows.
        self._sums: np.ndarray | None = None

    def add(
        self, visit: Visit, batch: Batch, rows: slice, values: tuple
    ) -> None:
        """Takes sketches `[dim, b]`, and scores `[m, b]` or numbers `[b]`."""
        sketches, *others = values
        dim = self._recipe.train_projection.dim
        start = int(visit.position) * dim
        scale = math.sqrt(self._recipe.checkpoints[visit.checkpoint])
        self._rows[rows, start : start + dim] = scale * sketches.T
        for array in others:
            if self._sums is None:
                shape = [len(self._rows), *array.shape[:-1]]
                self._sums = np.zeros(shape, array.dtype)
            if visit.position == 0:
                self._sums[rows] = array.T
            else:
                self._sums[rows] += array.T

    def result(self) -> dict[str, np.ndarray]:
        """The arrays of the shard, by kind."""
        if self._sums is None:
            return {"rows": self._rows}
        if self._recipe.columns is None:
            return {"rows": self._rows, "exact": self._sums}
        means = self._sums / len(self._recipe.checkpoints)
        return {"rows": self._rows * means[:, np.newaxis]}
