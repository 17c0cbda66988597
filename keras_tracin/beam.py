"""An index built by an Apache Beam pipeline, on any of Beam's runners.

For more machines than one `TF_CONFIG` describes. A shard of rows is an element;
each worker process makes the method once and computes the shards that it is
given; the last step lists them and makes the search. A pipeline that was
stopped goes on where it was when it is run again. All workers need the
directory in common, as a file system that lets a file be renamed.

Synopsis:

    import apache_beam as beam
    from keras_tracin.beam import BuildIndex

    with beam.Pipeline() as pipeline:
        pipeline | BuildIndex(
            "project.attribution:make_tracin", "index/imagenet",
            num_examples=1_281_167, read="project.data:read",
        )
    index = kt.InfluenceIndex("index/imagenet", model)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from keras_tracin.index.pieces import BuildPieces

try:
    import apache_beam as beam
except ImportError as error:
    raise ImportError(
        "keras_tracin.beam needs Apache Beam, which is not installed: "
        "`pip install keras_tracin[beam]`, in an environment of its own (see "
        "docs/scaling.md)."
    ) from error


class BuildIndex(beam.PTransform):
    """Builds an index as `InfluenceIndex.build` does, to the bit.

    Its input is the pipeline. Its output, an empty PCollection, is there once
    the index is.

    Args:
        factory: "module:attribute" of a function that returns the method.
        directory: directory of the index.
        **options: `projection`, `dtype`, `search`, `num_examples` and `read`,
            as in `keras_tracin.index.pieces.BuildPieces`.
    """

    def __init__(
        self, factory: str, directory: str | os.PathLike, **options: Any
    ):
        super().__init__()
        self._pieces = BuildPieces(factory, os.fspath(directory), **options)

    def expand(self, pipeline: Any) -> Any:
        """Adds the steps to a pipeline."""
        pieces = self._pieces
        return (
            pipeline
            | beam.Create([None])
            | "Begin" >> beam.ParDo(_Begin(pieces))
            | beam.Reshuffle()  # or one worker would be given all
            | "Write" >> beam.ParDo(_Write(pieces))
            | beam.CombineGlobally(beam.combiners.ToDictCombineFn())
            | "Finish" >> beam.ParDo(_Finish(pieces))
        )


class _Step(beam.DoFn):
    def __init__(self, pieces: BuildPieces):
        super().__init__()
        self._pieces = pieces


class _Begin(_Step):
    def process(self, element: None) -> Iterator[int]:
        """Yields the numbers of the shards."""
        yield from self._pieces.begin()


class _Write(_Step):
    def process(self, element: int) -> Iterator[tuple[int, str]]:
        """Yields the number of a shard, with the digest of its examples."""
        yield element, self._pieces.write(element)


class _Finish(_Step):
    def process(self, element: dict[int, str]) -> None:
        """Lists all shards and makes the search."""
        self._pieces.finish(element)
