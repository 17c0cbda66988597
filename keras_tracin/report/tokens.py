"""Texts of tokens for the page, and the shares of scores of their tokens.

Synopsis:

    views = TokenViews.of(tokenizer, "auto", token_influence)
    train = read(train, "train", ids, tokens=views.train)
    views.shares(top_k)                      # for the script
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.subwords import Vocabulary
from keras_tracin.data.token_texts import Text, TokenTexts
from keras_tracin.results import Ranking, TokenInfluence, TopK


@dataclasses.dataclass(frozen=True)
class TokenView:
    """Renders examples as texts of tokens.

    Attributes:
        reader: reads their tokens.
        influence: the shares of the tokens of training examples; None of
            queries, or where there are none.
        is_query: whether they are queries.
        texts: the texts that were rendered, by id.
    """

    reader: TokenTexts
    influence: TokenInfluence | None
    is_query: bool
    texts: dict[Any, Text] = dataclasses.field(default_factory=dict)
    features: tuple[str, ...] = ()
    num_hidden: int = 0

    def with_limits(self, batches: Iterable[Batch]) -> TokenView:
        """The view as it is: there are no images."""
        return self

    def render(self, batch: Batch) -> dict[str, list]:
        """The texts of a batch, as lists of pieces; of queries, the asked.

        Raises:
            ValueError: if there is no input of tokens, or several.
        """
        if self.is_query:
            texts = self.reader.queries(batch)
        else:
            texts = self.reader.examples(batch, self._has_share(batch.ids))
        self.texts.update(zip(batch.ids.tolist(), texts, strict=True))
        columns: dict[str, list] = {
            "tokens": [[piece.text for piece in t.pieces] for t in texts]
        }
        if self.is_query:
            columns["asked"] = [list(text.asked) for text in texts]
        return columns

    def _has_share(self, ids: np.ndarray) -> np.ndarray | None:
        """The positions that have a share of any score, `[n, t]`."""
        if self.influence is None:
            return None
        shared = (self.influence.scores != 0).any(axis=0)
        known = self.influence.train_ids.tolist()
        column = {id_: place for place, id_ in enumerate(known)}
        nothing = np.zeros(shared.shape[1], bool)
        return np.stack(
            [
                shared[column[id_]] if id_ in column else nothing
                for id_ in ids.tolist()
            ]
        )


@dataclasses.dataclass(frozen=True)
class TokenViews:
    """The views of training examples and of queries; None for the usual ones.

    Attributes:
        train: renders training examples.
        test: renders queries.
    """

    train: TokenView | None = None
    test: TokenView | None = None

    @classmethod
    def of(
        cls, tokenizer: Any, subwords: str, influence: TokenInfluence | None
    ) -> TokenViews:
        """The views, where tokens or their shares are given.

        Args:
            tokenizer: reads ids, as in `Vocabulary.of`.
            subwords: as in `Vocabulary.of`.
            influence: the shares of tokens.

        Raises:
            TypeError: if the tokenizer or the result is something else.
        """
        if influence is not None and not isinstance(influence, TokenInfluence):
            raise TypeError(
                "`token_influence` should be a TokenInfluence. Received: "
                f"{type(influence).__name__}. `token_influence(test)` of a "
                "method returns one."
            )
        if tokenizer is None and influence is None:
            return cls()
        vocabulary = Vocabulary.of(tokenizer, subwords)
        length = None if influence is None else influence.scores.shape[-1]
        train = TokenTexts(vocabulary, "train", length)
        test = TokenTexts(vocabulary, "test")
        return cls(
            TokenView(train, influence, False), TokenView(test, None, True)
        )

    def shares(self, top_k: TopK) -> dict[str, list]:
        """Shares of the tokens of proponents and opponents, by the side.

        For each query and example, numbers for the pieces of its text and one
        more for the rest; None where they are not known.

        Args:
            top_k: the proponents and opponents.

        Raises:
            ValueError: if the shares are of none of these, or not finite.
        """
        if self.train is None or self.train.influence is None:
            return {}
        influence, texts = self.train.influence, self.train.texts
        rows, columns = (
            {id_: place for place, id_ in enumerate(ids.tolist())}
            for ids in (influence.query_ids, influence.train_ids)
        )
        found = 0

        def of_pair(query: Any, example: Any) -> list[float] | None:
            nonlocal found
            if query not in rows or example not in columns:
                return None
            found += 1
            at = rows[query], columns[example]
            own = texts[example].shares(influence.scores[at])
            return _short([*own.tolist(), float(influence.rest[at])])

        def of_side(ranking: Ranking) -> list:
            queries = zip(
                top_k.query_ids.tolist(), ranking.ids.tolist(), strict=True
            )
            return [
                [of_pair(query, id_) for id_ in ids] for query, ids in queries
            ]

        sides = {
            "proponents": of_side(top_k.proponents),
            "opponents": of_side(top_k.opponents),
        }
        if not found:
            raise ValueError(
                "`token_influence` should be of queries and examples of "
                "`top_k`. Received none of these: its queries are "
                f"{influence.query_ids[:5].tolist()} and its examples "
                f"{influence.train_ids[:5].tolist()}. Pass `train="
                "top_k.proponents.ids[0]` to it, with the same queries."
            )
        return sides


def _short(values: list[float]) -> list[float]:
    """Values of three digits."""
    if not np.isfinite(values).all():
        raise ValueError("Shares should be finite. Received NaN or infinity.")
    return [float(f"{value:.3g}") for value in values]
