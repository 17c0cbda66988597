"""Queries of which only some tokens are asked about.

Synopsis:

    test = about_tokens((prompts, answers), tokens)    # [num_test, tokens]
    open_for_model(model, test, "test").first(2).sample_weight
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples


@dataclasses.dataclass(frozen=True)
class AskedTokens:
    """Queries with a number for each of their tokens.

    Attributes:
        data: the queries, in any form that methods take.
        tokens: `[num_test, tokens]`, by which weights are multiplied.
    """

    data: Any
    tokens: np.ndarray


def about_tokens(test: Any, tokens: Any) -> Any:
    """Queries of which only some tokens are asked about.

    The loss of a query is then that of these tokens, times what `sample_weight`
    says. A causal model predicts token t + 1 at position t, and it is the
    position of the label that is meant: for an answer that begins with the
    label at position 12, `tokens[:, 12:] = 1`.

    Args:
        test: queries, in any form that methods take.
        tokens: booleans, or numbers of 0 or more, `[num_test, tokens]`, of the
            labels' positions; or `[tokens]`, the same for all queries; or None
            for the queries as they are.

    Returns:
        The queries, as methods take them.

    Raises:
        ValueError: if these are no such numbers; and, when queries are read,
            if they do not fit the labels, or if none of a query's tokens is
            left.
    """
    if tokens is None:
        return test
    array = np.asarray(tokens)
    fits = array.ndim in (1, 2) and array.dtype.kind in "biuf"
    if not fits or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(
            "`query_tokens` should be booleans or numbers of 0 or more, "
            "[queries, tokens], or [tokens] for all queries. Received: "
            f"{array.dtype} of shape {array.shape}."
        )
    return AskedTokens(test, array.astype("float32"))


class AskedExamples(Examples):
    """Queries whose weights are multiplied by numbers of their tokens.

    Args:
        examples: the queries.
        tokens: `[num_test, tokens]` or `[tokens]`.
    """

    def __init__(self, examples: Examples, tokens: np.ndarray):
        self._examples, self._tokens = examples, tokens
        self.name, self.size = examples.name, examples.size
        self.estimate, self.note = examples.estimate, examples.note
        self.carries_ids = examples.carries_ids
        self.bytes_read_per_example = examples.bytes_read_per_example

    @property
    def is_padded(self) -> bool:
        """Whether examples of several lengths are padded."""
        return self._examples.is_padded

    def pad(self, *args: Any, **kwargs: Any) -> None:
        """Pads the queries, as `Examples.pad`."""
        self._examples.pad(*args, **kwargs)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields the queries in reading order, with their weights.

        Args:
            batch_size: as `Examples.batches`.

        Raises:
            ValueError: if the numbers do not fit the labels.
        """
        start = 0
        for batch in self._examples.batches(batch_size):
            yield self._weigh(batch, start)
            start += len(batch)
        if self._tokens.ndim == 2 and start != len(self._tokens):
            raise self._unfit(f"{start:,} queries")

    def _weigh(self, batch: Batch, start: int) -> Batch:
        labels = tf.nest.flatten(batch.y)
        length = labels[0].shape[1] if len(labels[0].shape) > 1 else None
        if len(labels) > 1 or length != self._tokens.shape[-1]:
            shapes = [tuple(label.shape) for label in labels]
            raise self._unfit(f"labels of shape {', '.join(map(str, shapes))}")
        rows = self._tokens
        if rows.ndim == 2:
            rows = rows[start : start + len(batch)]
            if len(rows) < len(batch):
                raise self._unfit(f"{start + len(batch):,} queries or more")
        weights = np.broadcast_to(rows, (len(batch), length))
        given = batch.sample_weight
        if given is not None:
            given = np.asarray(given, "float32")
            weights = weights * given.reshape(len(batch), -1)
        return dataclasses.replace(batch, sample_weight=weights.copy())

    def _unfit(self, received: str) -> ValueError:
        return ValueError(
            "`query_tokens` should have a number for each position of each "
            f"query's labels. Received: shape {self._tokens.shape}, for "
            f"{received}."
        )


def check_asked(batch: Batch) -> None:
    """Refuses queries that ask about nothing.

    Args:
        batch: queries, with the weights of their tokens if these have some.

    Raises:
        ValueError: if all weights of a query are 0, naming its id.
    """
    for leaf in tf.nest.flatten(batch.sample_weight):
        if leaf is None or len(leaf.shape) < 2 or leaf.shape[1] < 2:
            continue
        weights = np.asarray(leaf).reshape(len(batch), -1)
        empty = np.flatnonzero((weights == 0).all(axis=1))
        if len(empty):
            raise ValueError(
                "Each query should ask about one token or more. Received "
                f"weights of nothing but 0 for the query with "
                f"id {batch.ids[empty[0]].item()!r}. Choose others by "
                "`sample_weight` or `query_tokens=`; a preprocessor may have "
                "cut an answer off: give it a longer `sequence_length`."
            )
