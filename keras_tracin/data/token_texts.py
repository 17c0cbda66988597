"""Examples as texts of tokens: what each position says, without padding.

Synopsis:

    reader = TokenTexts(vocabulary, "train", length=64)
    reader.examples(batch)                   # a list of pieces for each
    reader.queries(batch)                    # and which are asked about
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch
from keras_tracin.data.kinds import as_text, kind_of, named_arrays
from keras_tracin.data.subwords import Piece, Vocabulary, kind_of_tokens
from keras_tracin.data.tokens import (
    Tokens,
    is_companion,
    padding_mask,
    predicts_next,
    read_tokens,
)


@dataclasses.dataclass(frozen=True)
class Text:
    """A text of tokens.

    Attributes:
        pieces: its pieces.
        asked: indices of the pieces that a query asks about; empty where it
            asks about all of them.
    """

    pieces: list[Piece]
    asked: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    def shares(self, scores: np.ndarray) -> np.ndarray:
        """The scores of the pieces: sums over the tokens of each.

        Args:
            scores: scores by position, `[t]`.
        """
        return np.array(
            [scores[list(piece.positions)].sum() for piece in self.pieces]
        )


@dataclasses.dataclass(frozen=True)
class TokenTexts:
    """Reads examples as texts of tokens.

    Attributes:
        vocabulary: reads ids.
        name: name of the data, for errors.
        length: length of the token input; None for any.
    """

    vocabulary: Vocabulary
    name: str
    length: int | None = None

    def examples(
        self, batch: Batch, has_share: np.ndarray | None = None
    ) -> list[Text]:
        """Training examples, whose positions are those of the token input.

        Args:
            batch: the examples.
            has_share: which positions have a share of a score, `[n, t]`.

        Raises:
            ValueError: if there is no input of this length, or several.
        """
        name, ids = self._input(batch.x)
        there = padding_mask(batch.x, name, ids.shape)
        if has_share is not None:
            weight = batch.sample_weight
            counts, least = has_share, 2
            if weight is not None and np.shape(weight) == ids.shape:
                counts, least = counts | (np.asarray(weight) != 0), 1
                # A token is predicted by the one before it.
                counts[:, 1:] |= counts[:, :-1].copy()
            there &= ~_is_padded(ids, counts, least)
        return self._texts(Tokens(ids, there, None))

    def queries(self, batch: Batch) -> list[Text]:
        """Queries, with the labels of a language model as further tokens.

        Args:
            batch: the queries; texts are taken as they are.

        Raises:
            ValueError: as `examples`.
        """
        texts = [
            (name, array)
            for name, array in named_arrays(batch.x)
            if kind_of(array) == "text"
        ]
        if texts:
            rows = zip(*(a.reshape(-1).tolist() for _, a in texts), strict=True)
            return [
                Text([Piece(" ".join(map(as_text, row)), ())]) for row in rows
            ]
        name, ids = self._input(batch.x)
        has_next = predicts_next(ids, batch.y, batch.sample_weight)
        tokens = read_tokens(batch, name, has_next)
        if tokens.is_asked is None:
            return self._texts(tokens)
        padded = _is_padded(tokens.ids, tokens.is_asked, 1)
        there = (tokens.is_there | tokens.is_asked) & ~padded
        return self._texts(Tokens(tokens.ids, there, tokens.is_asked))

    def _input(self, x: Any) -> tuple[str, np.ndarray]:
        """The input of tokens, by its length."""
        inputs = [
            (name, array)
            for name, array in named_arrays(x)
            if array.ndim == 2 and array.dtype.kind in "iuOSU"
        ]
        found = [
            (name, array)
            for name, array in inputs
            if self.length in (None, array.shape[1]) and not is_companion(name)
        ]
        if len(found) != 1:
            shapes = {name or "x": array.shape[1:] for name, array in inputs}
            length = "" if self.length is None else f" of {self.length} tokens"
            raise ValueError(
                f"`{self.name}` should have one input of ids of tokens, or of "
                f"tokens as text{length}. Received inputs of these shapes: "
                f"{shapes}. Pass what was scored, once it was preprocessed; of "
                "several inputs like these, the one that is meant."
            )
        return found[0]

    def _texts(self, tokens: Tokens) -> list[Text]:
        rows = list(zip(tokens.ids, tokens.is_there, strict=True))
        kind = self.vocabulary.subwords
        if kind is None:  # by all of them: a single text may have no mark
            read = self.vocabulary.tokens
            kind = kind_of_tokens(t for ids, k in rows for t in read(ids[k]))
        texts = []
        for row, (ids, there) in enumerate(rows):
            places = np.flatnonzero(there)
            pieces = [
                Piece(piece.text, tuple(places[list(piece.positions)].tolist()))
                for piece in self.vocabulary.pieces(ids[places], kind)
            ]
            asked = None if tokens.is_asked is None else tokens.is_asked[row]
            texts.append(Text(pieces, _asked(pieces, asked)))
        return texts


def _asked(pieces: list[Piece], asked: np.ndarray | None) -> tuple[int, ...]:
    """Indices of the pieces that are asked about; none where all are."""
    if asked is None:
        return ()
    chosen = [
        place
        for place, piece in enumerate(pieces)
        if asked[list(piece.positions)].any()
    ]
    # The first token of a language model is never asked about.
    others = set(range(1, len(pieces))) - set(chosen)
    return tuple(chosen) if others else ()


def _is_padded(ids: np.ndarray, counts: np.ndarray, least: int) -> np.ndarray:
    """Positions at the end that hold one id, and do not count.

    Args:
        ids: ids of tokens, `[n, t]`.
        counts: which positions count, `[n, t]`; if none does, none is padded.
        least: number of positions from which on they are taken for padding.
    """
    at_end = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1] == 0
    at_end &= counts.any(axis=1, keepdims=True)
    is_last = np.asarray(ids == ids[:, -1:])
    same = (is_last | ~at_end).all(axis=1, keepdims=True)
    return at_end & same & (at_end.sum(axis=1, keepdims=True) >= least)
