"""Finished parts that are put together without reading the training data.

Synopsis:

    whole = FinishedParts(parts.directory, {(0, 0): "…", (0, 1): "…"})
    top_k(blocks, whole.offer, k, available, whole)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_tracin.engine.chunks import Chunk, Sink
from keras_tracin.engine.parts import Parts


class FinishedParts(Parts):
    """The parts of a call that were all made, by whatever process.

    Args:
        directory: directory that holds them.
        digests: digest of each part's queries and training examples, by block
            and chunk.

    Raises:
        ValueError: if one is missing, or was made of other examples.
    """

    def __init__(self, directory: Path, digests: Mapping[tuple[int, int], str]):
        super().__init__(directory, (0, 1))
        self._expected = digests
        self.count = 1 + max(chunk for _, chunk in digests)

    def wants(self, block: int, chunk: int, digest: str = "") -> bool:
        """False: the part is there.

        Args:
            block: the block of queries.
            chunk: the chunk of training examples.
            digest: not looked at; that of the part's maker is.
        """
        expected = self._expected.get((block, chunk))
        if expected is None or super().wants(block, chunk, expected):
            raise ValueError(
                "Scores are put together from all of their pieces. Received "
                f"none for block {block} of the queries and chunk {chunk} of "
                "the training examples. Compute it, and finish again."
            )
        return False

    def offer(self, queries: Any, sink: Sink) -> None:
        """Streams nothing into a sink, but names all chunks to it.

        Args:
            queries: a block of queries.
            sink: asks whether they are wanted.
        """
        for number in range(self.count):
            sink.wants(Chunk(number, 0, ()))
