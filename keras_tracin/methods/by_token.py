"""Methods whose scores are told apart by the tokens of training examples.

Synopsis:

    class Dot(ByToken):                      # and so on, as for `Method`
        def query_pass(self, queries): ...   # products of gradients

    tracin.token_influence(test, train=[3, 17])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_tracin.data.ids import Reading, read_ids
from keras_tracin.engine import collecting
from keras_tracin.engine.chunks import Sink
from keras_tracin.engine.passes import Pass
from keras_tracin.engine.sweep import sweep
from keras_tracin.engine.token_steps import by_token, num_tokens
from keras_tracin.methods.base import Method
from keras_tracin.methods.contrast import about_both
from keras_tracin.methods.pairs import Pair
from keras_tracin.models.exclusive import exclusive_access
from keras_tracin.results import TokenInfluence


class ByToken(Method):
    """A method whose scores are sums over gradients of positions."""

    @exclusive_access
    def token_influence(
        self,
        test: Any,
        *,
        train: Any = None,
        contrast: Any = None,
        query_tokens: Any = None,
        sequence: str | None = None,
        verbose: int = 1,
    ) -> TokenInfluence:
        """Which tokens of training examples carry their scores.

        The gradient of a layer is a sum over the positions that it is applied
        to, and so is a score. The share of a position is that of the
        activations there (Grosse et al. 2023, sec. 5.3): the token that a
        layer read, together with all that it had gathered of the tokens
        before. It says nothing of which token had to be predicted: the loss
        at position t, of token t + 1, has a part in the shares of all
        positions up to t.

        What has no position for each token, such as a head on a pooled
        sequence, is in `rest`.

        Args:
            test: the queries, in the same form as `train` of the method.
            train: ids of the training examples to look at, such as those of a
                `top_k`; all of them by default.
            contrast: as in `influence`.
            query_tokens: as in `influence`.
            sequence: "encoder" or "decoder", for models that have tokens of
                both: their inputs are told apart by these words in their
                names, and layers by the length of the sequence.
            verbose: 0 for silence.

        Returns:
            A `TokenInfluence` with `scores [num_test, n, tokens]` and `rest
            [num_test, n]`, whose sum is the score of `influence`. The
            training examples are in the order of `train`.

        Raises:
            ValueError: if the model has no input of token ids, or of several
                lengths; if the scores do not fit in memory, with their size;
                for sketches in place of gradients; if an id of `train` is not
                among the training examples; and as `influence`.
        """
        method, asked = self, None
        if train is not None:
            asked = list(dict.fromkeys(read_ids(train, "train")))
            method = self.among(asked)
        test, contrast = about_both(test, contrast, query_tokens)
        test, contrast = self.as_contrasted(test, contrast)
        result = method._token_influence(test, sequence, verbose)
        if contrast is not None:
            other = method._token_influence(contrast, sequence, verbose)
            result = result.less(_in_order(other, result.train_ids))
        return result if asked is None else _in_order(result, np.array(asked))

    def as_contrasted(self, test: Any, contrast: Any) -> tuple[Any, Any]:
        """Both sides as `blocks` takes them, for scores to be subtracted.

        Args:
            test: the queries.
            contrast: a query for each of them, or None.
        """
        return test, contrast

    def token_pass(self, queries: Any, tokens: int) -> Pass:
        """The pass that scores training examples token by token.

        Args:
            queries: a block of queries.
            tokens: number of tokens.
        """
        return by_token(self.query_pass(queries), tokens)

    def _token_influence(
        self, test: Any, sequence: str | None, verbose: int
    ) -> TokenInfluence:
        tokens = num_tokens(self.engine.train_steps.spec[0], sequence)
        self._check_size(test, tokens)
        call = self.start("token_influence", test, None, verbose)

        def stream(queries: Any, sink: Sink) -> None:
            with self._limit(sink) as limited:
                work = self.token_pass(queries, tokens)
                sweep(self.engine, work, limited, call)

        return collecting.token_influence(self.blocks(test, call), stream)

    def _check_size(self, test: Any, tokens: int) -> None:
        """Refuses more scores than there is memory for."""
        asked = test.asked if isinstance(test, Pair) else test
        queries, _ = self.engine.open_queries(asked)
        count, examples = queries.expected_size, self.engine.train.expected_size
        limit = self.engine.execution.memory
        size = 4 * (count or 1) * (examples or 1) * (tokens + 1)
        if size > limit:
            raise ValueError(
                "Scores by token are held in memory. Received "
                f"{count or 1:,} queries × {examples or 1:,} training examples "
                f"× {tokens:,} tokens, {size / 2**20:,.0f} MB, where "
                f"{limit / 2**20:,.0f} MB may be used. Name the training "
                "examples to look at, `train=top.proponents.ids[0]`, or give "
                "fewer queries."
            )


def _in_order(result: TokenInfluence, ids: np.ndarray) -> TokenInfluence:
    """The scores of the training examples with these ids, in their order."""
    if np.array_equal(result.train_ids, ids):
        return result
    places = Reading(result.train_ids, "train").places(ids)
    return TokenInfluence(
        result.scores[:, places],
        result.rest[:, places],
        result.query_ids,
        result.train_ids[places],
    )
