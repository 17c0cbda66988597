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
from collections.abc import Callable
from typing import Any

from keras_tracin.index.pieces import BuildPieces
from keras_tracin.methods.pieces import ScorePieces

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
        return _in_pieces(pipeline, pieces, pieces.write) | (
            "Finish" >> beam.FlatMap(lambda made: pieces.finish(made) or ())
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
        return _in_pieces(pipeline, pieces, pieces.compute) | (
            "Finish" >> beam.Map(pieces.finish)
        )


def _in_pieces(
    pipeline: Any,
    pieces: BuildPieces | ScorePieces,
    make: Callable[[Any], str],
) -> Any:
    """A PCollection of one dict: the digest of each piece, by its number.

    Args:
        pipeline: the pipeline.
        pieces: tells the numbers.
        make: makes the piece of a number.
    """
    return (
        pipeline
        | beam.Create([None])
        | "Begin" >> beam.FlatMap(lambda _: pieces.begin())
        | beam.Reshuffle()  # or one worker would be given all
        | "Make" >> beam.Map(lambda number: (number, make(number)))
        | beam.CombineGlobally(beam.combiners.ToDictCombineFn())
    )
