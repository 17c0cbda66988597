"""The steps of building an index: begun, its rows written, finished.

Synopsis:

    build = begin(method, directory, projection=None, dtype="float32",
                  search=None, resume=True)
    add(build, examples)    # rows of some examples, then the search of all
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.engine.distribution import worker_of
from keras_tracin.engine.fingerprint import tolerance
from keras_tracin.index import search as searches
from keras_tracin.index.opening import resident_in, source_of
from keras_tracin.index.recall import measured
from keras_tracin.index.resident import Resident
from keras_tracin.index.source import Source, places_of
from keras_tracin.index.store import Store
from keras_tracin.index.writing import queries_among, write_rows
from keras_tracin.methods.influence import InfluenceFunctions
from keras_tracin.methods.tracin import TracIn
from keras_tracin.models.descriptions import describe_layers
from keras_tracin.projection import Projection
from keras_tracin.storage.sharing import wait_for_worker

SAMPLE = 20  # training examples that recall is measured on


@dataclasses.dataclass(frozen=True)
class Build:
    """An index to which rows are added.

    Attributes:
        store: its rows.
        source: what makes them.
        queries: the training examples that recall is measured on.
        resident: makes their vectors.
    """

    store: Store
    source: Source
    queries: Batch
    resident: Resident

    @property
    def scored(self) -> Batch | None:
        """The queries whose exact scores are kept beside the rows, if any."""
        # Scores of a sketched inverse are products of its rows: no others.
        return self.queries if self.store.identity["checkpoints"] else None


def begin(
    method: TracIn | InfluenceFunctions,
    directory: Path,
    *,
    projection: Projection | None,
    dtype: str,
    search: str | None,
    resume: bool,
) -> Build:
    """A new index, or one to go on with; see `InfluenceIndex.build`."""
    if dtype not in ("float32", "float16"):
        raise ValueError(
            f"`dtype` should be 'float32' or 'float16'. Received: {dtype!r}."
        )
    searches.check_kind(search)
    source = source_of(method, projection, directory)
    worker = worker_of(source.engine.execution.strategy)
    if worker[1] > 1 and not resume:
        raise ValueError(
            f"{worker[1]} processes build the index together, and find it "
            "begun by the first of them. Received: resume=False; leave it "
            "out, and choose a new directory for a new index."
        )
    queries = queries_among(source, SAMPLE)
    store = Store.open_or_create(
        directory,
        {**source.identity, "dtype": dtype},
        resume,
        worker,
        checkpoints=places_of(source.rates, directory),
        asked=search,
        queries=queries.ids.tolist(),
        layers=describe_layers(source.engine.model),
    )
    model = source.engine.model
    if not store.finished:
        store.made_of(source.numbers, tolerance(model))
    resident = resident_in(store, model, source, projection, None)
    return Build(store, source, queries, resident)


def add(
    build: Build,
    examples: Examples,
    name: Callable[[Batch], np.ndarray] = lambda batch: batch.ids,
    worker: tuple[int, int] = (0, 1),
) -> None:
    """Writes rows of examples, makes the search of all, and measures it.

    The last two are the work of the first process; others wait for it.

    Args:
        build: what is added to.
        examples: training examples.
        name: gives a batch's ids.
        worker: this process's index, and how many share the work.
    """
    store = build.store
    write_rows(
        store,
        build.source,
        examples,
        dtype=store.identity["dtype"],
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
    """Makes the search of all rows, and measures it."""
    store, queries = build.store, build.queries
    vectors = build.resident.vectors(queries)
    search, noted = searches.make(store, vectors, store.noted("asked"))
    noted["recall"] = measured(store, search, vectors, queries.ids)
    store.finish(noted)
