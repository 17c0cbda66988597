"""Low latency: training sketches on disk, and a search among them.

A training example's row holds its sketch at every checkpoint k, times √η_k, one
after another; a query's vector likewise. Their inner product is the estimated
TracIn score, so that proponents are a query's neighbours by inner product, and
opponents those of its negative (Pruthi et al. 2020, section C). Influence
functions by EK-FAC or with a sketched inverse (section A.1) and TRAK are such
products as well, and so is any other `Indexable`.

Synopsis:

    index = kt.InfluenceIndex.build(
        tracin, "index/digits", projection=kt.TensorSketch(1024)
    )
    index = kt.InfluenceIndex("index/digits", model)
    top = index.query((x, y), k=10)     # TopK
    index = kt.InfluenceIndex("index/digits", model, method=tracin)
    index.append((more_x, more_y))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.engine.distribution import check_first, worker_of
from keras_tracin.engine.padding import open_padded
from keras_tracin.index import search as searches
from keras_tracin.index.building import SAMPLE, Build, add, begin
from keras_tracin.index.manifest import REMEDY
from keras_tracin.index.new_examples import Naming, check_form
from keras_tracin.index.opening import (
    Runs,
    check_model,
    check_numbers,
    open_resident,
    recipe_in,
)
from keras_tracin.index.reranking import all_ids, rank_again
from keras_tracin.index.store import Store, verify
from keras_tracin.index.writing import select_queries
from keras_tracin.methods.index_files import kept_files
from keras_tracin.methods.indexable import Indexable
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.models.kinds import check_is_model
from keras_tracin.projection import Projection
from keras_tracin.results import Ranking, TopK, TopKMerger
from keras_tracin.storage import files

_BATCH = 256  # queries sketched in one step


class InfluenceIndex:
    """Training examples' sketches on disk, to be searched for a query's.

    Example:
    ```python
    index = kt.InfluenceIndex.build(
        tracin, "index/digits", projection=kt.TensorSketch(1024)
    )
    index.query((x_test, y_test), k=10).proponents.ids
    print(index)    # size, kind of search, recall
    ```

    Scores are estimates from sketches, positive for proponents; with
    `rerank=` they are exact. The first query of a kind reads the weights of
    all checkpoints and compiles a step; they stay in memory, so that later
    ones take milliseconds and read no more than the best rows. The model has
    its own weights back after every call.

    Later queries without `rerank=` are made side by side by any number of
    threads, also while another scores the same model: they take the weights
    that they hold, not those of the model.

    Args:
        directory: where `build` wrote the index.
        model: the trained model, compiled with its loss; for influence
            functions with the weights that it had.
        method: the method the index was built from; needed for `rerank=` and
            `append`, and where it was given a `loss` or `query_loss` of its
            own.
        projection: the one it was built with; needed only where it is of a
            class of the user's own.
        run: the training run, or its directory, where this is no longer in
            the same place as seen from the index; or a list of several.

    Raises:
        ValueError: if there is no index, its build was interrupted, a file is
            missing or damaged, or the model is not the one of its run.
    """

    @exclusive_access
    def __init__(
        self,
        directory: str | os.PathLike,
        model: keras.Model,
        *,
        method: Indexable | None = None,
        projection: Projection | None = None,
        run: Runs | None = None,
    ):
        check_is_model(model)
        store = Store(files.absolute_directory(directory))
        if not store.manifest.finished:
            raise ValueError(
                f"The build of the index in {directory} was interrupted: "
                f"{store.pending:,} rows are there. Call "
                "`InfluenceIndex.build` again, with `resume=True`, to finish "
                "it."
            )
        check_model(store.manifest, model)
        self._open(store.directory)
        self._recipe = recipe_in(store, model, method, projection)
        self._resident = open_resident(
            store, model, self._recipe, projection, run
        )

    def _open(self, directory: Path) -> None:
        """Reads what the files of the index say, but for the method."""
        store = Store(directory, only_finished=True)
        verify(store)
        for name, sha256 in kept_files(store.manifest.identity).items():
            files.check_digest(directory / name, sha256, REMEDY)
        search, ids = searches.load(store), store.shards.ids()
        self._store, self._ids = store, ids
        # At once, for the queries of other threads.
        self._rows = search, ids

    @classmethod
    @exclusive_access
    def build(
        cls,
        method: Indexable,
        directory: str | os.PathLike,
        *,
        projection: Projection | None = None,
        dtype: str = "float32",
        search: str | None = None,
        resume: bool = True,
    ) -> InfluenceIndex:
        """Sketches all training examples, shard by shard.

        Memory does not grow with their number, but for the search at the end,
        which takes a few hundred bytes for each. A build that was
        interrupted, by whatever, is continued by the same call, with the same
        bits.

        Processes of one cluster (`TF_CONFIG`, or that of the method's
        strategy) that make the same call with a directory in common share the
        work. Each writes shards of its own; the first also lists them and
        makes the search, while the others wait. The index is the same as one
        process would build. One that was killed is started again, and goes on
        after the shards that it had written.

        Args:
            method: a `TracIn` without a projection of its own, a `TRAK`,
                `InfluenceFunctions` by EK-FAC or with
                `solver=kt.RandomizedSketch(dim)`, or any other `Indexable`.
            directory: directory of the index.
            projection: projection for TracIn's sketches, by default
                `kt.TensorSketch(1024)`. For EK-FAC its `dim` is the number of
                directions that are kept, see docs/projections.md.
            dtype: dtype of the rows on disk, "float32", "float16", or "int8"
                with a scale for each row.
            search: how rows are searched: "exact" reads all of them, "flat"
                looks at a short form of all and reads the best, "hnsw" and
                "ivf" (by faiss) look at some. By default, the first of these
                that is fast at this size.
            resume: continue what is there; otherwise it is an error.
                Several processes need it.

        Raises:
            ValueError: if the index there is of another run, model,
                projection or other training examples, if a gradient is NaN
                or infinite, or if several processes are not to resume.
            OSError: if the disk is too small, or full. What was written
                stays.
        """
        build = begin(
            method,
            files.absolute_directory(directory),
            projection=projection,
            dtype=dtype,
            search=search,
            resume=resume,
        )
        engine = build.recipe.engine
        if not build.store.manifest.finished:
            verify(build.store)
            add(
                build, engine.train, worker=worker_of(engine.execution.strategy)
            )
        model = engine.model
        index = cls(directory, model, method=method, projection=projection)
        # It has read the weights, and compiled the step for queries.
        index._resident = build.resident
        return index

    @exclusive_access
    def append(self, train: Any, *, resume: bool = True) -> None:
        """Adds training examples, at the same checkpoints.

        All of them are added, or none: an `append` that was interrupted has
        added nothing, and is continued by the same call. The search is made
        anew, which reads all rows once.

        Args:
            train: more training examples, in the same form. Ids attached by
                `kt.with_ids` are kept; without, they go on from the largest.
            resume: go on from where an interrupted `append` of the same
                examples was; False begins again.

        Raises:
            ValueError: if the index was opened without `method=`, if an id
                is taken already, if another `append` was interrupted, if
                a gradient is NaN or infinite, or in any but the first process
                of a cluster: an `append` is not shared.
            OSError: if the disk is too small, or full.
        """
        if self._recipe is None:
            raise ValueError(
                "New training examples need the loss and the checkpoints of "
                "the method. Open the index with `InfluenceIndex(directory, "
                "model, method=tracin)`."
            )
        recipe, store = self._recipe, Store(self._store.directory, sparing=True)
        engine = recipe.engine
        check_first(engine.execution.strategy, "`append` of an index")
        examples = open_padded(
            engine.model, train, "train", engine.loss, engine.like
        )
        check_form(examples, recipe)
        check_numbers(store, recipe)
        if not resume:
            store.drop_pending()
        queries = select_queries(recipe, SAMPLE)
        recorded = store.manifest.get("queries")
        if queries.ids.tolist() != recorded:
            raise ValueError(
                "The training examples of the method do not begin as those in "
                "the index: recall was measured on other ones. Received ids "
                f"{queries.ids[:3].tolist()}..., expected "
                f"{recorded[:3]}.... Open the index with the method it was "
                "built from."
            )
        name = Naming(self._ids, examples.carries_ids)
        add(Build(store, recipe, queries, self._resident), examples, name)
        self._open(store.directory)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        store, recall = self._store, self.recall
        identity, width = store.manifest.identity, store.shards.width
        count = len(identity.get("checkpoints", [])) or 1
        return (
            f"<InfluenceIndex of {files.display_path(store.directory)}: "
            f"{len(self):,} rows of "
            f"{count} × {width // count:,} {identity['dtype']}, "
            f"{store.manifest.nbytes / 2**20:,.0f} MB; "
            f"search: {self._rows[0].kind}; "
            f"recall@{recall['k']} of exact scores on {recall['queries']} "
            f"training examples: {recall['proponents']:.2f} proponents, "
            f"{recall['opponents']:.2f} opponents{_show_rounding(recall)}>"
        )

    @property
    def ids(self) -> np.ndarray:
        """The ids of the training examples, in reading order."""
        return self._ids

    @property
    def recall(self) -> dict[str, Any]:
        """Share of the best by exact scores that the search returns.

        Measured when the index was made, by the search that is used, on some
        of the training examples, each of which is left out of its own lists:
        the share of the `k` strongest "proponents" and "opponents", and the
        number of "queries". Where rows are float16 or int8, "rounding" has
        the shares of the strongest by rows as they were made that are found
        among all rounded ones, and the "correlation" of both scores.
        """
        return dict(self._store.manifest.get("search")["recall"])

    def rows(self, ids: Any) -> np.ndarray:
        """The rows of training examples, `[len(ids), width]`, as float32.

        Args:
            ids: their ids, in any order.

        Raises:
            ValueError: if an id is not in the index.
        """
        asked = np.asarray(ids)
        known = np.argsort(self._ids, kind="stable")
        places = np.searchsorted(self._ids, asked, sorter=known)
        positions = known[np.minimum(places, len(known) - 1)]
        others = asked[self._ids[positions] != asked]
        if len(others):
            raise ValueError(
                "The index has no rows of some examples. Received ids that "
                f"are not in it: {others[:5].tolist()}."
            )
        distinct, back = np.unique(positions, return_inverse=True)
        return self._store.shards.read(distinct)[back]

    def query(self, test: Any, k: int = 10, rerank: int = 0) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        Args:
            test: the queries, in the same form as training data.
            k: number of examples on each side.
            rerank: 0 for scores from sketches; otherwise the number of
                candidates of each side, at least `k`, that are scored exactly
                and ranked again. Needs `method=`, whose training data is
                read.

        Raises:
            ValueError: if `k` or `rerank` is out of range, if `rerank` is
                asked for without a method, or if `test` does not fit.
        """
        if rerank and (self._recipe is None or self._recipe.exact is None):
            raise ValueError(
                "`rerank` scores training examples exactly where rows only "
                "estimate, for which it needs them. Open an index of TracIn "
                "with `InfluenceIndex(directory, model, method=tracin)`, one "
                "of EK-FAC likewise; products of other rows are the scores."
            )
        if rerank and rerank < k:
            raise ValueError(
                f"`rerank` should be 0 or at least k. Received: {rerank} with "
                f"k={k}."
            )
        TopKMerger(np.zeros(0), k, len(self))  # refuses a bad k
        count = min(rerank, len(self)) if rerank else k
        rows = self._rows  # the same for all batches, whoever appends more
        examples = self._resident.open(test)
        top = TopK.concat(
            [
                self._search(*rows, batch, count)
                for batch in examples.batches(_BATCH)
            ]
        )
        if not rerank:
            return top
        assert self._recipe is not None
        assert self._recipe.exact is not None
        return rank_again(top, self._recipe.exact(all_ids(top), test), k)

    def _search(
        self, search: searches.Search, ids: np.ndarray, batch: Batch, k: int
    ) -> TopK:
        sides = search.both(self._resident.vectors(batch), k)
        proponents, opponents = (
            Ranking(ids[positions], scores) for positions, scores in sides
        )
        return TopK(proponents, opponents, batch.ids)


def _show_rounding(recall: dict[str, Any]) -> str:
    """What rounding has changed, in words."""
    if "rounding" not in recall:
        return ""
    rounding = recall["rounding"]
    return (
        f"; of those by unrounded rows {rounding['proponents']:.2f} and "
        f"{rounding['opponents']:.2f}, correlation of scores "
        f"{rounding['correlation']:.4f}"
    )
