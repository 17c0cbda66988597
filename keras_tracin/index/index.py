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
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin import _files
from keras_tracin.attribution import Ranking, TopK, TopKMerger
from keras_tracin.datasets import Batch, open_examples
from keras_tracin.gradients.functions import GradientFunctions, kind_of
from keras_tracin.gradients.sites import find_sites
from keras_tracin.index.store import Store
from keras_tracin.projection import (
    FactoredProjection,
    GaussianProjection,
    Projection,
    TensorSketch,
    check_projection,
    describe,
)
from keras_tracin.query_losses import query_value
from keras_tracin.runs import run_weights
from keras_tracin.runs.manifest import architecture, first_mismatch
from keras_tracin.sweep import in_chunks
from keras_tracin.tracin import TracIn

_SHARD = 64 * 2**20  # bytes of rows, about
_BATCH = 256  # fixed, so that a resumed build has the same bits
_KNOWN: dict[str, Any] = {
    kind.__name__: kind
    for kind in (TensorSketch, GaussianProjection, FactoredProjection)
}


class InfluenceIndex:
    """Training examples' sketches on disk, to be searched for a query's.

    Example:
        index = kt.InfluenceIndex.build(
            tracin, "index/digits", projection=kt.TensorSketch(1024)
        )
        index.query((x_test, y_test), k=10).proponents.ids

    Scores are estimates from sketches, positive for proponents; with
    `rerank=` they are exact. The model has its own weights back after every
    call.

    Args:
        directory: where `build` wrote the index.
        model: the trained model, compiled with its loss.
        method: the method the index was built from; needed for `rerank=`, and
            where it was given a `loss` or `query_loss` of its own.
        projection: the one it was built with; needed only where it is of a
            class of the user's own.

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
    ):
        self._store = store = Store(Path(directory))
        if not store.complete:
            raise ValueError(
                f"The build of the index in {directory} was interrupted: "
                f"{store.size:,} rows are there. Call `InfluenceIndex.build` "
                "again, with `resume=True`, to finish it."
            )
        identity = store.identity
        mismatch = first_mismatch(identity["model"], model)
        if mismatch:
            raise ValueError(
                f"The model '{model.name}' is not the one whose index is in "
                f"{directory}: {mismatch}."
            )
        custom = identity["loss"] != "compiled" or (
            identity["query_loss"] not in ("loss", "logit", "margin")
        )
        if method is not None:
            _check_method(store, method, projection)
        elif custom:
            raise ValueError(
                f"The index in {directory} was built with a loss of the "
                "user's own, which files do not hold. Pass the method it was "
                "built from as `method=`."
            )
        store.verify()
        self._model, self._method = model, method
        self._projection = projection or _made_again(identity["projection"])
        self._ids = store.ids()
        self._steps: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        method: TracIn,
        directory: str | os.PathLike,
        *,
        projection: Projection | None = None,
        dtype: str = "float32",
        resume: bool = True,
    ) -> InfluenceIndex:
        """Sketches all training examples, shard by shard.

        Memory does not grow with their number. A build that was interrupted,
        by whatever, is continued by the same call, with the same bits.

        Args:
            method: a `TracIn` without a projection of its own.
            directory: where the index goes.
            projection: `kt.TensorSketch(1024)` by default.
            dtype: of the rows on disk, "float32" or "float16".
            resume: continue what is there; otherwise it is an error.

        Raises:
            ValueError: if the index there is of another run, model,
                projection or other training examples, or if a gradient is NaN
                or infinite.
            OSError: if the disk is full. What was written stays.
        """
        projection = TensorSketch(1024) if projection is None else projection
        check_projection(projection)
        if isinstance(projection, FactoredProjection) and not projection.joint:
            raise ValueError(
                "Neighbours can be searched among sketches only, not among "
                f"sides kept apart. Received: projection={projection!r}; leave "
                "out `joint=False`."
            )
        if dtype not in ("float32", "float16"):
            raise ValueError(
                "`dtype` should be 'float32' or 'float16'. Received: "
                f"{dtype!r}."
            )
        identity = _identity(method, projection, dtype)
        store = Store.open_or_create(Path(directory), identity, resume)
        if not store.complete:
            _write_rows(store, method, projection, dtype)
        model = method.scorer.model
        return cls(directory, model, method=method, projection=projection)

    def __len__(self) -> int:
        return self._store.size

    @property
    def ids(self) -> np.ndarray:
        """The ids of the training examples, in reading order."""
        return self._ids

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
        query_ids, vectors = self._vectors(test)
        wanted = min(rerank, len(self)) if rerank else k
        merger = TopKMerger(query_ids, wanted, len(self))
        for start, rows in self._store.blocks():
            scores = vectors @ rows.astype(np.float32).T
            merger.add(self._ids[start : start + len(rows)], scores)
        found = merger.result()
        return self._ranked_again(test, found, k) if rerank else found

    def _vectors(self, test: Any) -> tuple[np.ndarray, np.ndarray]:
        """Ids `[m]` and vectors `[m, checkpoints · dim]` of the queries."""
        examples = open_examples(test, "test")
        batches = list(examples.batches(_BATCH))
        step = self._step_like(batches[0])
        dim = self._projection.dim
        checkpoints = self._store.identity["checkpoints"]
        ids = np.concatenate([batch.ids for batch in batches])
        vectors = np.empty([len(ids), dim * len(checkpoints)], np.float32)
        with run_weights(self._model) as load:
            for at, checkpoint in enumerate(checkpoints):
                path = Path(self._store.identity["files"][at])
                _files.check_digest(path, checkpoint["sha256"])
                load(path)
                start, columns = 0, slice(at * dim, (at + 1) * dim)
                scale = math.sqrt(checkpoint["rate"])
                for batch in batches:
                    sketch = step(batch.data, np.int32(at)).numpy()
                    stop = start + len(batch)
                    vectors[start:stop, columns] = scale * sketch
                    start = stop
        if not np.isfinite(vectors).all():
            bad = ids[~np.isfinite(vectors).all(axis=1)]
            raise ValueError(
                f"The gradients of query examples with ids {bad.tolist()} are "
                "NaN or infinite. Look for NaN in their inputs and labels."
            )
        return ids, vectors

    def _step_like(self, batch: Batch):
        """The compiled step that sketches queries of this kind."""
        kind = kind_of(batch.data)
        if kind not in self._steps:
            if self._method is not None:
                functions = self._method.scorer.steps_like(batch).query
            else:
                identity = self._store.identity
                functions = GradientFunctions(
                    self._model,
                    query_value(self._model, identity["query_loss"]),
                    batch.data,
                    _layers_at(self._model, identity["layers"]),
                )
            self._steps[kind] = functions.sketches(self._projection)
        return self._steps[kind]

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


def _identity(method: TracIn, projection: Projection, dtype: str) -> dict:
    """What must be the same for rows, and queries, to go together."""
    scorer = method.scorer
    if scorer.projection is not None:
        raise ValueError(
            "An index is built from exact gradients. Received a TracIn with "
            f"projection={scorer.projection!r}: leave it out there and give "
            "it to `build`."
        )
    if getattr(method, "optimizer_aware", False):
        raise ValueError(
            "An index holds plain gradients. Received a TracIn with "
            "optimizer_aware=True; leave it out."
        )
    model = scorer.model
    known = model._flatten_layers()
    sites = find_sites(model, scorer.layers)
    return {
        "method": type(method).__name__,
        # Numbered, not named: Keras counts layers anew in each process.
        "model": [
            [f"weight {at}", shape, dtype]
            for at, (_, shape, dtype) in enumerate(
                architecture(model)["weights"]
            )
        ],
        "layers": [
            next(at for at, layer in enumerate(known) if layer is site.layer)
            for site in sites
        ],
        "loss": method.loss_name,
        "query_loss": method.query_loss_name,
        "projection": describe(projection),
        "dtype": dtype,
        "checkpoints": [
            {
                "sha256": checkpoint.sha256 or _files.digest(checkpoint.path),
                "rate": rate,
            }
            for checkpoint, rate in method.rates.items()
            if checkpoint is not None
        ],
        "files": [
            str(checkpoint.path.resolve())
            for checkpoint in method.rates
            if checkpoint is not None
        ],
    }


def _layers_at(model: keras.Model, places: Sequence[int]) -> list:
    known = model._flatten_layers()
    return [known[place] for place in places]


def _made_again(recorded: dict[str, Any]) -> Projection:
    """The projection that a file describes."""
    fields = dict(recorded)
    kind = _KNOWN.get(fields.pop("class"))
    if kind is None:
        raise ValueError(
            "The index was built with a projection of the user's own, "
            f"{recorded}, which files do not hold. Pass it as `projection=`."
        )
    return kind(**fields)


def _check_method(
    store: Store, method: TracIn, projection: Projection | None
) -> None:
    """Raises ValueError unless the rows come from such a method."""
    projection = projection or _made_again(store.identity["projection"])
    identity = _identity(method, projection, store.identity["dtype"])
    Store.open_or_create(store.directory, identity, resume=True)


def _write_rows(
    store: Store, method: TracIn, projection: Projection, dtype: str
) -> None:
    """Writes the shards that are not there yet."""
    scorer = method.scorer
    scorer.check_interaction()
    step = scorer.train_steps.sketches(projection)
    width = projection.dim * len(method.rates)
    size = max(_BATCH, _SHARD // (width * np.dtype(dtype).itemsize))
    with run_weights(scorer.model) as load:
        chunks = in_chunks(scorer.train.batches(_BATCH), size)
        for shard, chunk in enumerate(chunks):
            ids = np.concatenate([batch.ids for batch in chunk])
            digest = _digest(chunk)
            if shard < store.num_shards:
                store.holds(shard, ids, digest)
                continue
            rows = np.empty([len(ids), width], np.float32)
            for at, (checkpoint, rate) in enumerate(method.rates.items()):
                assert checkpoint is not None
                load(checkpoint)
                start = 0
                columns = slice(at * projection.dim, (at + 1) * projection.dim)
                for batch in chunk:
                    sketch = step(batch.data, np.int32(at)).numpy()
                    if not np.isfinite(sketch).all():
                        scorer.raise_bad_training(batch, checkpoint)
                    stop = start + len(batch)
                    rows[start:stop, columns] = math.sqrt(rate) * sketch
                    start = stop
            store.append(_narrowed(rows, dtype), ids, digest)
    store.finish()


def _narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float16" and np.abs(rows).max() > np.finfo(np.float16).max:
        raise ValueError(
            "A row does not fit float16: its largest number is "
            f"{np.abs(rows).max():.3g}. Build with dtype='float32'."
        )
    return rows.astype(dtype, copy=False)


def _digest(chunk: list[Batch]) -> str:
    """Of the examples' content, leaf by leaf."""
    found = hashlib.blake2b(digest_size=16)
    for batch in chunk:
        for leaf in tf.nest.flatten(batch.data):
            found.update(np.ascontiguousarray(leaf).tobytes())
    return found.hexdigest()
