"""The contract between a method and an index of its training examples.

An index holds a row for each training example and makes a vector for each
query; their inner product is the score. At a checkpoint k both are sketches of
gradients times √η_k, and one checkpoint's follow another's. Any method whose
scores are such products can say how they are made: then an index can be built
of it, and knows nothing else of the method.

Synopsis:

    recipe = tracin.index_rows(kt.TensorSketch(1024), keep)
    recipe.identity                   # what rows and vectors depend on
    recipe.train_projection.sketch    # makes rows
    recipe.query_projection.sketch    # makes vectors
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow as tf

from keras_tracin.engine.distribution import Strategy
from keras_tracin.engine.engine import Engine
from keras_tracin.engine.identity import More, no_more, numbers
from keras_tracin.engine.measures import Numbers
from keras_tracin.engine.visits import Visit, Weights
from keras_tracin.projection import Projection
from keras_tracin.results import Attribution


class Keep(Protocol):
    """Keeps a file in the directory of an index, for all who use it."""

    def __call__(
        self,
        name: str,
        save: Callable[[Path], None],
        strategy: Strategy | None,
    ) -> Path:
        """The path of a file that belongs to the index.

        The process that begins the index writes the file; later calls, and
        other processes, get the one that is there.

        Args:
            name: name of the file.
            save: writes the file to a path.
            strategy: the method's; it says which process is the first.
        """


@dataclasses.dataclass(frozen=True)
class RowRecipe:
    """How a method's rows and query vectors are made.

    Attributes:
        engine: the model with its training data and losses.
        checkpoints: the checkpoints to visit, each with its factor in the sum
            over them. Rows and vectors are both multiplied by its square
            root.
        train_projection: sketches a training example's gradients at one
            checkpoint, for its row.
        query_projection: sketches a query's gradients, for its vector.
        identity: description that rows and vectors of one index share, as
            JSON.
        exact: `(ids, test) -> Attribution`, the exact scores of the training
            examples with these ids; None where products of rows and vectors
            are the scores themselves.
        directions: `(visit, gradients [m, p]) -> [m, p]`, what queries'
            gradients become before training examples' are multiplied by them
            for exact scores; None if they stay as they are.
        columns: where gradients are those of an output: the columns of the
            numbers beside it (see `keras_tracin.losses.model_outputs`) that
            multiply a row, in the mean over the checkpoints, and a query's
            sketch at each of them.
        projection: the projection that the caller gave, if any.
        more: makes further numbers that tell apart what rows are made with.
    """

    engine: Engine
    checkpoints: Weights
    train_projection: Projection
    query_projection: Projection
    identity: dict[str, Any]
    exact: Callable[[np.ndarray, Any], Attribution] | None = None
    directions: Callable[[Visit, tf.Tensor], tf.Tensor] | None = None
    columns: tuple[int, int] | None = None
    projection: Projection | None = None
    more: More = no_more

    @property
    def width(self) -> int:
        """Length of a row."""
        return len(self.checkpoints) * self.train_projection.dim

    def numbers(self, ids: np.ndarray | None = None) -> Numbers:
        """Numbers that tell apart what rows and vectors are made with.

        Args:
            ids: ids of the training examples to take; by default they are
                spread over all.

        Raises:
            ValueError: if there are no training examples with such ids.
        """
        # What is kept in a file is a part of the identity.
        return numbers(
            self.engine,
            self.checkpoints,
            more=self.more,
            projection=self.projection,
            ids=ids,
            as_queries=True,
        )


@runtime_checkable
class Indexable(Protocol):
    """A method whose scores are inner products of rows and query vectors."""

    def index_rows(
        self, projection: Projection | None, keep: Keep
    ) -> RowRecipe:
        """How rows and query vectors are made.

        Args:
            projection: sketches gradients, as the caller asks for; None for
                the method's own.
            keep: keeps a file beside the rows, where a projection cannot be
                described by a few numbers.

        Raises:
            ValueError: if the method, as it was configured, or the projection
                does not make scores that are such products.
        """
