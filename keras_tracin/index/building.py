"""The steps of building an index: begin, write rows, make the search.

Synopsis:

    build = begin(method, directory, projection=None, dtype="float32",
                  search=None, resume=True)
    add(build, build.recipe.engine.train)     # their rows, then the search
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.engine.distribution import worker_of
from keras_tracin.index import search as searches
from keras_tracin.index.opening import (
    check_numbers,
    check_sketches,
    open_resident,
    recipe_of,
    relative_paths,
)
from keras_tracin.index.recall import measure_recall
from keras_tracin.index.resident import Resident
from keras_tracin.index.rounding import Kept, check_dtype, measure_rounding
from keras_tracin.index.store import Store
from keras_tracin.index.writing import select_queries, write_rows
from keras_tracin.methods.indexable import Indexable, RowRecipe
from keras_tracin.models.descriptions import describe_layers
from keras_tracin.projection import Projection
from keras_tracin.storage.sharing import wait_for_worker

SAMPLE = 20  # training examples that recall is measured on


@dataclasses.dataclass(frozen=True)
class Build:
    """An index to which rows are added.

    Attributes:
        store: the files of the index.
        recipe: how its rows are made.
        queries: the training examples that recall is measured on.
        resident: makes the queries' vectors.
    """

    store: Store
    recipe: RowRecipe
    queries: Batch
    resident: Resident

    @property
    def scored(self) -> Batch | None:
        """The queries whose exact scores are kept beside the rows, if any."""
        return None if self.recipe.exact is None else self.queries

    @functools.cached_property
    def kept(self) -> Kept:
        """In which form rows are kept, and what beside them."""
        dtype = self.store.manifest.identity["dtype"]
        if dtype == "float32":
            return Kept(dtype)
        return Kept(dtype, self.resident.vectors(self.queries))


def begin(
    method: Indexable,
    directory: Path,
    *,
    projection: Projection | None,
    dtype: str,
    search: str | None,
    resume: bool,
) -> Build:
    """A new index, or one to go on with; see `InfluenceIndex.build`."""
    check_dtype(dtype)
    searches.check_kind(search)
    recipe = recipe_of(method, projection, directory)
    worker = worker_of(recipe.engine.execution.strategy)
    if worker[1] > 1 and not resume:
        raise ValueError(
            f"{worker[1]} processes build the index together, and find it "
            "begun by the first of them. Received: resume=False; leave it "
            "out, and choose a new directory for a new index."
        )
    queries = select_queries(recipe, SAMPLE)
    model = recipe.engine.model
    store = Store.open_or_create(
        directory,
        {**recipe.identity, "dtype": dtype},
        resume,
        worker,
        checkpoints=relative_paths(recipe.checkpoints, directory),
        asked=search,
        queries=queries.ids.tolist(),
        layers=describe_layers(model),
    )
    if not store.manifest.finished:
        check_sketches(store.manifest, model)
        check_numbers(store, recipe)
    resident = open_resident(store, model, recipe, projection, None)
    return Build(store, recipe, queries, resident)


def add(
    build: Build,
    examples: Examples,
    name: Callable[[Batch], np.ndarray] = lambda batch: batch.ids,
    worker: tuple[int, int] = (0, 1),
) -> None:
    """Writes rows of examples, makes the search of all, and measures it.

    The last two are the work of the first process; others wait for it.

    Args:
        build: the index.
        examples: training examples to add.
        name: returns a batch's ids.
        worker: index of this process and number of processes.
    """
    store = build.store
    write_rows(
        store,
        build.recipe,
        examples,
        kept=build.kept,
        queries=build.scored,
        name=name,
        worker=worker,
    )
    index, workers = worker
    if index == 0:
        finish(build)
        return
    what = f"the search of the index in {store.directory}"
    wait_for_worker(store.is_finished, 0, workers, what)


def finish(build: Build) -> None:
    """Makes the search of all rows, and measures its recall."""
    store, queries = build.store, build.queries
    vectors = build.resident.vectors(queries)
    search, entry = searches.make(store, vectors, store.manifest.get("asked"))
    recall = measure_recall(store.shards, search, vectors, queries.ids)
    rounding = measure_rounding(store.shards, vectors, queries.ids)
    if rounding is not None:
        recall["rounding"] = rounding
    store.finish({**entry, "recall": recall})
