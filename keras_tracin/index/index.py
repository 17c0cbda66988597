"""Low latency: training sketches on disk, and search among them (section C).

A training example's row holds its sketch at every checkpoint k, times √η_k, one
after another; a query's vector likewise. Their inner product is the estimated
TracIn score, so that proponents are a query's neighbours by inner product, and
opponents those of its negative.

Synopsis:

    index = kt.InfluenceIndex.build(
        tracin, "index/digits", projection=kt.TensorSketch(1024)
    )
    index = kt.InfluenceIndex("index/digits", model)
    top = index.query((x, y), k=10)                 # TopK
    index.append((more_x, more_y))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.attribution import Ranking, TopK, TopKMerger
from keras_tracin.datasets import Batch, Examples, open_examples
from keras_tracin.gradients.functions import GradientFunctions, kind_of
from keras_tracin.index import search as searches
from keras_tracin.index.recall import measured
from keras_tracin.index.resident import Resident
from keras_tracin.index.source import (
    Source,
    layers_at,
    located,
    made_again,
    places_of,
    source_of,
)
from keras_tracin.index.store import Store
from keras_tracin.index.writing import queries_among, write_rows
from keras_tracin.projection import Projection
from keras_tracin.query_losses import query_value
from keras_tracin.runs import TrainingRun
from keras_tracin.runs.manifest import first_mismatch
from keras_tracin.tracin import TracIn

_BATCH = 256  # queries sketched in one step
_SAMPLE = 20  # training examples that recall is measured on


class InfluenceIndex:
    """Training examples' sketches on disk, to be searched for a query's.

    Example:
        index = kt.InfluenceIndex.build(
            tracin, "index/digits", projection=kt.TensorSketch(1024)
        )
        index.query((x_test, y_test), k=10).proponents.ids
        print(index)    # size, kind of search, recall

    Scores are estimates from sketches, positive for proponents; with
    `rerank=` they are exact. The first query of a kind reads the weights of
    all checkpoints and compiles a step; they stay in memory, so that later
    ones take milliseconds and read no more than the best rows. The model has
    its own weights back after every call.

    Args:
        directory: where `build` wrote the index.
        model: the trained model, compiled with its loss.
        method: the method the index was built from; needed for `rerank=` and
            `append`, and where it was given a `loss` or `query_loss` of its
            own.
        projection: the one it was built with; needed only where it is of a
            class of the user's own.
        run: the training run, or its directory, where this is no longer in
            the same place as seen from the index.

    Raises:
        ValueError: if there is no index, its build was interrupted, a file is
            missing or damaged, or the model is not the one of its run.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        model: keras.Model,
        *,
        method: TracIn | None = None,
        projection: Projection | None = None,
        run: TrainingRun | str | os.PathLike | None = None,
    ):
        store = Store(Path(directory))
        if not store.finished:
            raise ValueError(
                f"The build of the index in {directory} was interrupted: "
                f"{store.pending:,} rows are there. Call "
                "`InfluenceIndex.build` again, with `resume=True`, to finish "
                "it."
            )
        _check_model(store, model)
        self._model, self._method = model, method
        self._source = _source(store, method, projection)
        self._open(store)
        self._resident = _resident(store, model, self._source, projection, run)

    def _open(self, store: Store) -> None:
        self._store = store.only_finished()
        self._store.verify()
        self._search = searches.load(self._store)
        self._ids = self._store.ids()

    @classmethod
    def build(
        cls,
        method: TracIn,
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

        Args:
            method: a `TracIn` without a projection of its own.
            directory: where the index goes.
            projection: `kt.TensorSketch(1024)` by default.
            dtype: of the rows on disk, "float32" or "float16".
            search: how rows are searched: "exact" reads all of them, "flat"
                looks at a short form of all and reads the best, "hnsw" and
                "ivf" (by faiss) look at some. By default, the first of these
                that is fast at this size.
            resume: continue what is there; otherwise it is an error.

        Raises:
            ValueError: if the index there is of another run, model,
                projection or other training examples, or if a gradient is NaN
                or infinite.
            OSError: if the disk is too small, or full. What was written
                stays.
        """
        if dtype not in ("float32", "float16"):
            raise ValueError(
                "`dtype` should be 'float32' or 'float16'. Received: "
                f"{dtype!r}."
            )
        searches.check_kind(search)
        source = source_of(method, projection)
        directory = Path(directory)
        store = Store.open_or_create(
            directory,
            {**source.identity, "dtype": dtype},
            resume,
            checkpoints=places_of(source.rates, directory),
            asked=search,
        )
        if not store.finished:
            store.verify()
            model = source.scorer.model
            queries = queries_among(source, _SAMPLE)
            write_rows(
                store, source, source.scorer.train, dtype=dtype, queries=queries
            )
            resident = _resident(store, model, source, projection, None)
            _finish(store, resident, queries)
        return cls(
            directory, source.scorer.model, method=method, projection=projection
        )

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
                is taken already, if another `append` was interrupted, or if
                a gradient is NaN or infinite.
            OSError: if the disk is too small, or full.
        """
        if self._source is None:
            raise ValueError(
                "New training examples need the loss and the checkpoints of "
                "the method. Open the index with `InfluenceIndex(directory, "
                "model, method=tracin)`."
            )
        source, store = self._source, Store(self._store.directory)
        examples = open_examples(train, "train")
        _check_kind(examples, source)
        if not resume:
            store.drop_pending()
        queries = queries_among(source, _SAMPLE)
        write_rows(
            store,
            source,
            examples,
            dtype=store.identity["dtype"],
            queries=queries,
            name=_Naming(self._ids, examples.carries_ids),
        )
        _finish(store, self._resident, queries)
        self._open(store)

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        store, noted = self._store, self._store.noted("search")
        recall = noted["recall"]
        count = len(store.identity.get("checkpoints", [])) or 1
        return (
            f"<InfluenceIndex of {store.directory}: {len(self):,} rows of "
            f"{count} × {store.width // count:,} {store.identity['dtype']}, "
            f"{store.nbytes / 2**20:,.0f} MB; search: {self._search.kind}; "
            f"recall@{recall['k']} of exact scores on {recall['queries']} "
            f"training examples: {recall['proponents']:.2f} proponents, "
            f"{recall['opponents']:.2f} opponents>"
        )

    @property
    def ids(self) -> np.ndarray:
        """The ids of the training examples, in reading order."""
        return self._ids

    @property
    def recall(self) -> dict[str, Any]:
        """What the search finds of the best by exact scores.

        Measured when the index was made, by the search that is used, on some
        of the training examples, each of which is left out of its own lists:
        the share of the `k` strongest "proponents" and "opponents", and the
        number of "queries".
        """
        return dict(self._store.noted("search")["recall"])

    def query(self, test: Any, k: int = 10, rerank: int = 0) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        Args:
            test: the queries, in the same form as training data.
            k: how many on each side.
            rerank: 0 for scores from sketches. Otherwise so many candidates
                of each side, at least `k`, are scored exactly and ranked
                again; needs `method=`, whose training data is read.

        Raises:
            ValueError: if `k` or `rerank` is out of range, if `rerank` is
                asked for without a method, or if `test` does not fit.
        """
        if rerank and self._method is None:
            raise ValueError(
                "`rerank` scores training examples exactly, for which it needs "
                "them. Open the index with `InfluenceIndex(directory, model, "
                "method=tracin)`."
            )
        if rerank and rerank < k:
            raise ValueError(
                f"`rerank` should be 0 or at least k. Received: {rerank} with "
                f"k={k}."
            )
        TopKMerger(np.zeros(0), k, len(self))  # refuses a bad k
        wanted = min(rerank, len(self)) if rerank else k
        found = TopK.concat(
            [
                self._found(batch, wanted)
                for batch in open_examples(test, "test").batches(_BATCH)
            ]
        )
        return self._ranked_again(test, found, k) if rerank else found

    def _found(self, batch: Batch, k: int) -> TopK:
        sides = self._search.both(self._resident.vectors(batch), k)
        proponents, opponents = (
            Ranking(self._ids[positions], scores) for positions, scores in sides
        )
        return TopK(proponents, opponents, batch.ids)

    def _ranked_again(self, test: Any, found: TopK, k: int) -> TopK:
        """The candidates in the order of their exact scores."""
        assert self._method is not None
        candidates = np.unique(
            np.concatenate(
                [found.proponents.ids.ravel(), found.opponents.ids.ravel()]
            )
        )
        exact = self._method.among(candidates).influence(test, verbose=0)
        place = {name: at for at, name in enumerate(exact.train_ids.tolist())}
        lost = [name for name in candidates.tolist() if name not in place]
        if lost:
            raise ValueError(
                f"`rerank` needs training examples {lost[:5]}, which the "
                "method does not have: they were appended. Open the index "
                "with a method whose `train` holds them too."
            )
        sides = []
        for ranking, sign in ((found.proponents, -1), (found.opponents, 1)):
            columns = np.array(
                [[place[i] for i in row] for row in ranking.ids.tolist()]
            )
            scores = np.take_along_axis(exact.scores, columns, axis=1)
            order = np.argsort(sign * scores, axis=1, kind="stable")[:, :k]
            sides.append(
                Ranking(
                    np.take_along_axis(ranking.ids, order, axis=1),
                    np.take_along_axis(scores, order, axis=1),
                )
            )
        return TopK(sides[0], sides[1], found.query_ids)


def _check_model(store: Store, model: keras.Model) -> None:
    mismatch = first_mismatch(store.identity["model"], model)
    if mismatch:
        raise ValueError(
            f"The model '{model.name}' is not the one whose index is in "
            f"{store.directory}: {mismatch}."
        )


def _source(
    store: Store, method: TracIn | None, projection: Projection | None
) -> Source | None:
    """What the method gives, which has to be that of the rows."""
    identity = store.identity
    if method is not None:
        if projection is None:
            projection = made_again(identity["projection"])
        source = source_of(method, projection)
        store.check({**source.identity, "dtype": identity["dtype"]})
        return source
    known = identity["query_loss"] in ("loss", "logit", "margin")
    if identity["loss"] != "compiled" or not known:
        raise ValueError(
            f"The index in {store.directory} was built with a loss of the "
            "user's own, which files do not hold. Pass the method it was "
            "built from as `method=`."
        )
    return None


def _resident(
    store: Store,
    model: keras.Model,
    source: Source | None,
    projection: Projection | None,
    run: TrainingRun | str | os.PathLike | None,
) -> Resident:
    """What sketches queries, from the method or from what the files say."""
    identity = store.identity
    checkpoints = identity["checkpoints"]
    paths: Sequence[Path]
    if source is not None:
        paths = [each.path for each in source.rates if each is not None]
        projection = source.of_query
    else:
        places = store.noted("checkpoints")
        paths = located(identity, places, store.directory, run)
        projection = projection or made_again(identity["projection"])

    def functions_like(batch: Batch) -> GradientFunctions:
        if source is not None:
            return source.scorer.steps_like(batch).query
        value = query_value(model, identity["query_loss"])
        layers = layers_at(model, identity["layers"])
        return GradientFunctions(model, value, batch.data, layers)

    digests = [each["sha256"] for each in checkpoints]
    return Resident(
        model,
        projection,
        list(zip(paths, digests, strict=True)),
        [each["rate"] for each in checkpoints],
        functions_like,
    )


def _finish(store: Store, resident: Resident, queries: Batch) -> None:
    """Makes the search of all rows and measures it."""
    vectors = resident.vectors(queries)
    search, noted = searches.make(store, vectors, store.noted("asked"))
    noted["recall"] = measured(store, search, vectors, queries.ids)
    store.finish(noted)


def _check_kind(examples: Examples, source: Source) -> None:
    """Raises ValueError unless new examples are in the form of the others."""
    received = kind_of(examples.first(1).data)
    expected = kind_of(source.scorer.train.first(1).data)
    if received != expected:
        raise ValueError(
            "New training examples should be in the form of those in the "
            f"index. Received {received}, expected {expected}."
        )


class _Naming:
    """Gives new examples their ids, and refuses those that are taken.

    Args:
        taken: the ids in the index.
        carried: whether new examples have ids of their own.
    """

    def __init__(self, taken: np.ndarray, carried: bool):
        self._taken = set(taken.tolist())
        self._carried = carried
        self._next = 0
        if not carried and taken.dtype.kind not in "iu":
            raise ValueError(
                "The ids in the index are no numbers that could go on: "
                f"received {taken[0]!r}, for one. Attach ids to the new "
                "examples, `kt.with_ids(data, ids).batch(...)`."
            )
        if not carried:
            self._next = int(taken.max()) + 1

    def __call__(self, batch: Batch) -> np.ndarray:
        if not self._carried:
            return self._next + batch.ids
        names = batch.ids.tolist()
        again = [name for name in names if name in self._taken]
        if again or len(set(names)) < len(names):
            raise ValueError(
                "Each training example needs an id of its own. Received again: "
                f"{again[:5] or names[:5]}. `kt.with_ids(data, ids)` gives "
                "others."
            )
        self._taken.update(names)
        return batch.ids
