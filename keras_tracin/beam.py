"""Scores and indices computed by an Apache Beam pipeline, on any runner.

For more machines than one `TF_CONFIG` describes. A shard of an index's rows, or
a block of queries × a chunk of training examples, is an element; each worker
process makes the method once and computes what it is given; the last step puts
it together. A pipeline that was stopped goes on where it was when it is run
again. All workers need the directory in common, as a file system that lets a
file be renamed.

Synopsis:

    import apache_beam as beam
    from keras_tracin.beam import BuildIndex, ComputeScores

    with beam.Pipeline() as pipeline:
        pipeline | BuildIndex(
            "project.attribution:make_tracin", "index/imagenet",
            num_examples=1_281_167, read="project.data:read",
        )
        pipeline | ComputeScores(
            "self_influence", "project.attribution:make_tracin", "scores/own",
            num_examples=1_281_167, read="project.data:read",
        ) | beam.Map(lambda scores: scores.save("own.npz"))
    index = kt.InfluenceIndex("index/imagenet", model)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from keras_tracin.index.pieces import BuildPieces
from keras_tracin.methods.pieces import Piece, ScorePieces

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
        return _in_pieces(pipeline, _Begin(pieces), _Write(pieces)) | (
            "Finish" >> beam.ParDo(_Finish(pieces))
        )


class ComputeScores(beam.PTransform):
    """Makes a call of a method, with the result of one process, to the bit.

    Its input is the pipeline. Its output is a PCollection of one element, the
    `TopK`, `SelfInfluence` or `Attribution`.

    Args:
        call: "top_k", "self_influence" or "influence".
        factory: "module:attribute" of a function that returns the method.
        directory: where finished pieces are kept.
        **options: `test`, `k`, `num_examples` and `read`, as in
            `keras_tracin.methods.pieces.ScorePieces`.
    """

    def __init__(
        self,
        call: Any,
        factory: str,
        directory: str | os.PathLike,
        **options: Any,
    ):
        super().__init__()
        directory = os.fspath(directory)
        self._pieces = ScorePieces(call, factory, directory, **options)

    def expand(self, pipeline: Any) -> Any:
        """Adds the steps to a pipeline."""
        pieces = self._pieces
        return _in_pieces(
            pipeline, _BeginScores(pieces), _ComputeScores(pieces)
        ) | ("Finish" >> beam.ParDo(_FinishScores(pieces)))


def _in_pieces(pipeline: Any, begin: beam.DoFn, compute: beam.DoFn) -> Any:
    """A PCollection of a dict, of what `compute` returned by piece."""
    return (
        pipeline
        | beam.Create([None])
        | "Begin" >> beam.ParDo(begin)
        | beam.Reshuffle()  # or one worker would be given all
        | "Compute" >> beam.ParDo(compute)
        | beam.CombineGlobally(beam.combiners.ToDictCombineFn())
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


class _ScoresStep(beam.DoFn):
    def __init__(self, pieces: ScorePieces):
        super().__init__()
        self._pieces = pieces


class _BeginScores(_ScoresStep):
    def process(self, element: None) -> Iterator[Piece]:
        """Yields the numbers of the pieces."""
        yield from self._pieces.begin()


class _ComputeScores(_ScoresStep):
    def process(self, element: Piece) -> Iterator[tuple[Piece, str]]:
        """Yields the numbers of a piece, with the digest of its data."""
        yield element, self._pieces.compute(element)


class _FinishScores(_ScoresStep):
    def process(self, element: dict[Piece, str]) -> Iterator[Any]:
        """Yields the result."""
        yield self._pieces.finish(element)
