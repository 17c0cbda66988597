"""The queries of an ensemble, in blocks whose scores fit memory.

Synopsis:

    queries = EnsembleQueries(test, Execution())
    for batch in queries.cut(lambda: num_train):
        data = queries.data_of(batch)       # for the members
        block = ScoredBlock((batch,), lambda: ask(data))
        average(block.scores(), block.ids, scale=None)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.asked import AskedTokens, about_tokens
from keras_tracin.data.batches import Batch, content_digest, join
from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.execution import Execution
from keras_tracin.results import Attribution

BYTES_PER_SCORE = 12  # the member's, their sum, and what ranking takes
_READ = 16  # queries, while the number of training examples is not known
_DIGESTED = 256  # examples at a time


@dataclasses.dataclass(frozen=True)
class ScoredBlock:
    """Queries whose scores are averaged together.

    Attributes:
        batches: the queries.
        scores: returns the members' scores, one member after another.
    """

    batches: tuple[Batch, ...]
    scores: Callable[[], Iterable[Attribution]]

    @property
    def ids(self) -> np.ndarray:
        """The queries' ids."""
        return np.concatenate([batch.ids for batch in self.batches])


class EnsembleQueries:
    """The queries of an ensemble.

    Args:
        test: the queries, as `fit` would take them.
        execution: its memory limit bounds the scores of a block.

    Attributes:
        examples: the opened queries.
    """

    def __init__(self, test: Any, execution: Execution):
        self._test, self._execution = test, execution
        self._tokens = None
        self._starts: dict[Any, int] = {}  # of blocks, by their first id
        if isinstance(test, AskedTokens):
            test, self._tokens = test.data, test.tokens
        self.examples = open_examples(test, "test", labels=False)

    def digest(self) -> str:
        """A digest of all queries."""
        start = "" if self._tokens is None else repr(self._tokens.tolist())
        return content_digest(self.examples.batches(_DIGESTED), start)

    def room(self, num_train: int | None) -> int:
        """Number of queries in a block.

        Args:
            num_train: number of training examples; None if it is not known.
        """
        if num_train is None:
            return _READ
        per_query = (
            BYTES_PER_SCORE * num_train
            + 4 * self.examples.bytes_read_per_example
        )
        return max(1, self._execution.memory // (4 * max(1, per_query)))

    def cut(self, num_train: Callable[[], int | None]) -> Iterator[Batch]:
        """The queries in blocks whose scores fit memory.

        Args:
            num_train: returns the number of training examples, which the
                scores of the first block may tell.
        """
        kept: list[Batch] = []
        start = 0
        first = min(self.room(num_train()), self.examples.size or _READ)
        for batch in self.examples.batches(first):
            kept.append(batch)
            if sum(map(len, kept)) >= self.room(num_train()):
                block = join(kept)
                self._starts[block.ids[0].item()] = start
                yield block
                start += len(block)
                kept = []
        if kept:
            block = join(kept)
            self._starts[block.ids[0].item()] = start
            yield block

    def data_of(self, block: Batch) -> Any:
        """The queries of a block with their ids, as `fit` would take them."""
        if len(block) == self.examples.size:
            return self._test
        rows = tf.data.Dataset.from_tensors((block.ids, block.data))
        tokens = self._tokens
        if tokens is not None and tokens.ndim == 2:
            start = self._starts[block.ids[0].item()]
            tokens = tokens[start : start + len(block)]
        return about_tokens(DatasetWithIds(rows), tokens)
