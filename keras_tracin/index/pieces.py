"""The build of an index in pieces, for a scheduler to run wherever it likes.

A piece names what it needs by text and numbers: a factory that makes the
method, a directory that all machines share, and the number of a shard. Pieces
run in any order and any process, and again where one was lost. The index is
the same, to the bit, as `InfluenceIndex.build` makes it in one process.

Synopsis:

    pieces = BuildPieces("project.attribution:make_tracin", "index/imagenet",
                         num_examples=1_281_167, read="project.data:read")
    shards = pieces.begin()                             # one process
    digests = {n: pieces.write(n) for n in shards}      # anywhere
    pieces.finish(digests)                              # one process
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.ranges import Ranges, imported
from keras_tracin.index.building import Build, begin, finish
from keras_tracin.index.shard_pass import shard_pass
from keras_tracin.index.store import verify
from keras_tracin.index.writing import (
    BATCH,
    examples_per_shard,
    make_shard,
)
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.projection import Projection


@dataclasses.dataclass(frozen=True)
class BuildPieces:
    """The pieces of one build.

    Attributes:
        factory: "module:attribute" of a function without arguments that
            returns the method, as `InfluenceIndex.build` takes it. It is
            called once in each process that runs pieces.
        directory: directory of the index; all processes share it.
        projection: makes sketches, as in `InfluenceIndex.build`.
        dtype: dtype of the rows.
        search: kind of search, as in `InfluenceIndex.build`.
        num_examples: as in `keras_tracin.engine.ranges.Ranges`.
        read: as there.
    """

    factory: str
    directory: str
    projection: Projection | None = None
    dtype: str = "float32"
    search: str | None = None
    num_examples: int | None = None
    read: str | None = None

    @exclusive_access
    def begin(self) -> list[int]:
        """Begins the index, or goes on with it.

        Returns:
            The numbers of its shards; none if it is finished.

        Raises:
            ValueError: as `InfluenceIndex.build`, and if it is not known how
                many training examples there are.
        """
        _prepare.cache_clear()
        build, _ = _prepare(self)
        verify(build.store)
        if build.store.manifest.finished:
            return []
        per_shard = examples_per_shard(build.recipe, self.dtype)
        return list(range(math.ceil(self._examples(build).count / per_shard)))

    @exclusive_access
    def write(self, shard: int) -> str:
        """Writes a shard, unless it is there.

        Args:
            shard: its number.

        Returns:
            The digest of its examples, for `finish`.

        Raises:
            ValueError: if it was made from other examples, if `read` returns
                something else than was asked for, or if a gradient is NaN or
                infinite.
        """
        build, work = _prepare(self)
        chunk = self._chunk(build, shard)
        digest = content_digest(chunk)
        if build.store.is_there(shard):
            build.store.check_examples(shard, digest)
            return digest
        arrays = make_shard(
            build.recipe,
            work(),
            chunk,
            build.kept,
            self._examples(build).count,
        )
        build.store.put(shard, arrays, digest)
        return digest

    @exclusive_access
    def finish(self, digests: Mapping[int, str]) -> None:
        """Lists all shards and makes the search among them.

        Args:
            digests: results of `write`, by shard.

        Raises:
            ValueError: if a shard is missing or of other examples.
        """
        build, _ = _prepare(self)
        store = build.store
        store.manifest.reread()
        if store.manifest.finished:
            return
        missing = [n for n in range(len(digests)) if n not in digests]
        if missing or not digests:
            raise ValueError(
                "An index is finished from all of its shards. Received "
                f"{len(digests)}, without {missing[:5]}."
            )
        for shard in range(len(digests)):
            if shard < store.manifest.num_shards:
                store.check_examples(shard, digests[shard])
            else:
                store.take(shard, digests[shard])
        finish(build)

    def _examples(self, build: Build) -> Ranges:
        return Ranges(build.recipe.engine, self.num_examples, self.read)

    def _chunk(self, build: Build, shard: int) -> list[Batch]:
        """The examples of a shard, in the batches of a build by one process."""
        examples = self._examples(build)
        per_shard = examples_per_shard(build.recipe, self.dtype)
        start = shard * per_shard
        stop = min(start + per_shard, examples.count)
        return examples.batches(start, stop, BATCH)


@functools.cache
def _prepare(pieces: BuildPieces) -> tuple[Build, Callable[[], Pass]]:
    """The index and the pass that makes rows, once in each process."""
    build = begin(
        imported(pieces.factory)(),
        Path(pieces.directory),
        projection=pieces.projection,
        dtype=pieces.dtype,
        search=pieces.search,
        resume=True,
    )

    @functools.cache
    def work() -> Pass:
        return shard_pass(build.recipe, build.scored)

    return build, work
