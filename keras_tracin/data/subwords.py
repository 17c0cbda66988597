"""Tokens as the pieces of a text that a person reads.

SentencePiece marks words by "▁", byte-level vocabularies as of GPT-2 by "Ġ",
WordPiece the rest of a word by "##"; other tokens are taken as whole words,
unless they bring their own spaces. A letter that takes several tokens, each a
part of its bytes, is one piece.

Synopsis:

    vocabulary = Vocabulary.of(tokenizer)
    pieces = vocabulary.pieces(ids)
    "".join(piece.text for piece in pieces)
    pieces[0].positions                      # of the tokens it is made of
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_tracin.data.kinds import as_text

SUBWORDS = ("sentencepiece", "bytes", "wordpiece", "words", "text")
_PADDING = re.compile(r"|[<\[]\|?(?i:pad)\|?[>\]]")  # or an empty token
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # of SentencePiece
_WORDPIECE = re.compile(r"##\w")
_LOOKED_AT = 50_000  # tokens of a vocabulary, to tell its kind
_CLOSING = frozenset(".,;:!?%")  # and brackets and quotes that close


@dataclasses.dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: the text, with the space before it where there is one.
        positions: positions of the tokens that it is made of.
    """

    text: str
    positions: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """How ids of tokens are read.

    Attributes:
        token_of: the token of an id.
        subwords: one of `SUBWORDS`; None where the tokens themselves tell.
    """

    token_of: Callable[[Any], str | bytes]
    subwords: str | None = None

    @classmethod
    def of(cls, tokenizer: Any = None, subwords: str = "auto") -> Vocabulary:
        """Reads ids by a tokenizer, a function, or a list of tokens.

        Args:
            tokenizer: one of KerasHub, or anything else with `id_to_token`; a
                function of an id; a list of tokens, by id; a dict of tokens by
                id or of ids by token; None where tokens are strings already.
            subwords: one of `SUBWORDS`, or "auto".

        Raises:
            TypeError: if `tokenizer` is anything else.
            ValueError: if `subwords` is anything else.
        """
        if subwords not in ("auto", *SUBWORDS):
            raise ValueError(
                f"`subwords` should be 'auto' or one of {list(SUBWORDS)}. "
                f"Received: {subwords!r}."
            )
        token_of, known = _reading(tokenizer)
        kind = None if subwords == "auto" else subwords
        if kind is None and known is not None:
            kind = kind_of_tokens(itertools.islice(known, _LOOKED_AT))
        return cls(token_of, kind)

    def tokens(self, ids: Iterable[Any]) -> list[str | bytes]:
        """The tokens of ids."""
        return [self.token_of(id_) for id_ in ids]

    def pieces(
        self, ids: Iterable[Any], subwords: str | None = None
    ) -> list[Piece]:
        """The pieces of a text, without padding that is named as such.

        Args:
            ids: its ids.
            subwords: what the tokens are where the vocabulary does not tell.
        """
        tokens = list(enumerate(self.tokens(ids)))
        tokens = [(at, token) for at, token in tokens if not is_padding(token)]
        kind = self.subwords or subwords
        kind = kind or kind_of_tokens(token for _, token in tokens)
        return _joined(tokens, kind)


def is_padding(token: str | bytes) -> bool:
    """Whether a token is called padding, or is empty."""
    return _PADDING.fullmatch(as_text(token)) is not None


def kind_of_tokens(tokens: Iterable[str | bytes]) -> str:
    """What tokens are, one of `SUBWORDS`, by the marks that some of them have.

    Args:
        tokens: those of a vocabulary, or of some texts.
    """
    known = [as_text(token) for token in tokens]
    if any(token.startswith("▁") for token in known):
        return "sentencepiece"
    if any(token.startswith(("Ġ", "Ċ")) for token in known):
        return "bytes"
    if any(_WORDPIECE.match(token) for token in known):
        return "wordpiece"
    if any(token[:1].isspace() or token[-1:].isspace() for token in known):
        return "text"
    return "words"


def _reading(
    tokenizer: Any,
) -> tuple[Callable[[Any], str | bytes], Iterable[str | bytes] | None]:
    """A function of an id, and all tokens where they are known."""
    if tokenizer is None:
        return lambda token: token, None
    if hasattr(tokenizer, "id_to_token"):
        listed = getattr(tokenizer, "get_vocabulary", None)
        known = None if listed is None else _plain(listed())
        return _checked(tokenizer.id_to_token), known
    if isinstance(tokenizer, Mapping):
        by_id = dict(tokenizer)
        if by_id and isinstance(next(iter(by_id)), str | bytes):
            by_id = {id_: token for token, id_ in by_id.items()}
        return _checked(by_id.__getitem__), list(by_id.values())
    if isinstance(tokenizer, Sequence | np.ndarray) and not isinstance(
        tokenizer, str | bytes
    ):
        tokens = _plain(tokenizer)
        return _checked(functools.partial(_at, tokens)), tokens
    if callable(tokenizer):
        return _checked(tokenizer), None
    raise TypeError(
        "`tokenizer` should have `id_to_token`, as those of KerasHub, or be a "
        "function of an id, a list of tokens or a dict. Received: "
        f"{tokenizer!r}."
    )


def _plain(tokens: Any) -> list[str | bytes]:
    return [t.item() if isinstance(t, np.generic) else t for t in tokens]


def _at(tokens: list[str | bytes], id_: int) -> str | bytes:
    if id_ < 0:
        raise IndexError(id_)
    return tokens[id_]


def _checked(
    token_of: Callable[[Any], Any],
) -> Callable[[Any], str | bytes]:
    def read(id_: Any) -> str | bytes:
        id_ = id_.item() if isinstance(id_, np.generic) else id_
        try:
            token = token_of(id_)
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"`tokenizer` should have a token for each id. Received the id "
                f"{id_!r}, which it does not know. Pass the tokenizer that the "
                "data were made with."
            ) from error
        if not isinstance(token, str | bytes):
            raise TypeError(
                "`tokenizer` should return a token as text. Received "
                f"{token!r} for the id {id_!r}."
            )
        return token

    return read


def _joined(tokens: list[tuple[int, str | bytes]], kind: str) -> list[Piece]:
    """Pieces of whole letters."""
    pieces: list[Piece] = []
    pending, before = b"", ""
    positions: tuple[int, ...] = ()
    for count, (position, token) in enumerate(tokens, 1):
        pending += _as_bytes(token, kind, before)
        positions = (*positions, position)
        before = as_text(token)
        text = _decoded(pending, is_last=count == len(tokens))
        if text is not None:
            pieces.append(Piece(text, positions))
            pending, positions = b"", ()
    if pieces and kind != "text":  # no space before the first word
        first = pieces[0]
        stripped = first.text.removeprefix(" ")
        pieces[0] = Piece(stripped or first.text, first.positions)
    return pieces


def _decoded(pending: bytes, is_last: bool) -> str | None:
    """The bytes as text; None where the last letter is not complete."""
    try:
        return pending.decode("utf-8")
    except UnicodeDecodeError as error:
        if (
            error.end == len(pending)
            and not is_last
            and error.start + 4 > len(pending)
        ):
            return None
        return pending.decode("utf-8", errors="replace")


def _as_bytes(token: str | bytes, kind: str, before: str) -> bytes:
    """What a token adds to the text, in UTF-8."""
    if isinstance(token, bytes):
        return token
    if kind == "bytes":
        known = _bytes_of_letters()
        return b"".join(known.get(c) or c.encode() for c in token)
    if kind == "sentencepiece":
        if match := _BYTE.fullmatch(token):
            return bytes([int(match[1], 16)])
        return token.replace("▁", " ").encode("utf-8", "replace")
    text = token
    if kind == "wordpiece" and _WORDPIECE.match(token):
        text = token[2:]
    elif kind in ("wordpiece", "words") and _is_apart(before, token):
        text = f" {token}"
    return text.encode("utf-8", "replace")


def _is_apart(before: str, token: str) -> bool:
    """Whether there is a space between two words."""
    if not before or not token:
        return False
    both_wide = all(
        unicodedata.east_asian_width(letter) in "WF"
        for letter in (before[-1], token[0])
    )
    first = unicodedata.normalize("NFKC", token[0])[0]
    closes = first in _CLOSING or unicodedata.category(first) in ("Pe", "Pf")
    opens = unicodedata.category(before[-1]) in ("Ps", "Pi")
    return not (both_wide or closes or opens)


@functools.cache
def _bytes_of_letters() -> dict[str, bytes]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Letters that can be printed stand for themselves, the other bytes for the
    letters from 256 on (Radford et al. 2019).
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    letters = {chr(byte): bytes([byte]) for byte in printed}
    return letters | {
        chr(256 + place): bytes([byte]) for place, byte in enumerate(others)
    }
