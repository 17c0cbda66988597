"""The words of examples: of texts, or ids of tokens.

Synopsis:

    examples = open_texts(train, "train")
    reader = WordReader.of(examples.first(256), words="weighted")
    reader.read(batch)                       # a list of words for each example
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import numpy as np

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.examples import open_examples
from keras_tracin.data.kinds import as_text, named_arrays
from keras_tracin.data.tokens import predicts_next, read_tokens, token_inputs

Word = Hashable
WORDS = ("weighted", "all")
# Chinese and Japanese have no spaces: there, each character is a word.
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+")


def open_texts(data: Any, name: str, pad: bool = True) -> Examples:
    """Examples as `fit` takes them, or inputs alone.

    Args:
        data: the data; a list of texts will do as well.
        name: name of the data, for errors.
        pad: whether examples of several lengths are padded.
    """
    if isinstance(data, list | tuple) and all(isinstance(t, str) for t in data):
        data = np.array(data, dtype=object)
    examples = open_examples(data, name, labels=False)
    if pad:
        examples.pad(lambda short, padded: True)
    return examples


def split_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


@dataclasses.dataclass(frozen=True)
class WordReader:
    """Reads the words of examples.

    Attributes:
        is_text: whether examples are texts; else ids of tokens.
        has_next: whether labels are the tokens that follow.
        words: one of `WORDS`.
        tokenizer: splits a text into words.
        ignored: words that are left out.
    """

    is_text: bool
    has_next: bool
    words: str
    tokenizer: Callable[[str], Iterable[Word]]
    ignored: frozenset[Word]

    @classmethod
    def of(
        cls,
        sample: Batch,
        words: str = "weighted",
        tokenizer: Callable[[str], Iterable[Word]] | None = None,
        ignored: Iterable[Word] = (),
    ) -> WordReader:
        """Reads words of examples like those of a sample.

        Args:
            sample: some training examples.
            words: "weighted", or "all" up to the last of them.
            tokenizer: splits a text into words; `split_words` by default.
            ignored: words, or ids of tokens, that are left out.

        Raises:
            ValueError: if there are neither texts nor tokens, or `words` is
                something else.
        """
        if words not in WORDS:
            raise ValueError(
                "`words` should be 'weighted', those whose weight is not zero, "
                f"or 'all' up to the last of these. Received: {words!r}."
            )
        is_text = bool(_texts(sample.x))
        tokens = [] if is_text else token_inputs(sample.x)
        if not is_text and not tokens:
            shapes = {
                name or "x": f"{array.dtype} {array.shape[1:]}"
                for name, array in named_arrays(sample.x)
            }
            raise ValueError(
                "A comparison of words needs texts, or ids of tokens "
                f"`[n, tokens]`. Received inputs of these: {shapes}. Pass the "
                "texts, with the same ids, or use "
                "`kt.evaluation.EmbeddingSimilarity`."
            )
        weights = sample.sample_weight
        has_next = any(
            predicts_next(ids, sample.y, weights) for _, ids in tokens
        )
        return cls(
            is_text,
            has_next,
            words,
            tokenizer or split_words,
            frozenset(ignored),
        )

    def read(self, batch: Batch) -> list[list[Word]]:
        """The words of each example, in their order.

        Raises:
            ValueError: for texts where there were tokens, or the reverse.
        """
        texts = _texts(batch.x)
        if bool(texts) != self.is_text:
            kinds = "texts", "ids of tokens"
            received, expected = kinds if texts else kinds[::-1]
            raise ValueError(
                f"Queries should hold {expected}, as the training examples "
                f"do. Received {received}, whose words are others."
            )
        if texts:
            rows = zip(*texts, strict=True)
            found = [self._split(" ".join(parts)) for parts in rows]
        else:
            found = self._tokens(batch)
        return [[w for w in row if w not in self.ignored] for row in found]

    def _split(self, text: str) -> list[Word]:
        words = self.tokenizer(text)
        if hasattr(words, "shape"):  # a tensor, of KerasHub
            return np.asarray(words).tolist()
        return list(words)

    def _tokens(self, batch: Batch) -> list[list[Word]]:
        found: list[list[Word]] = [[] for _ in range(len(batch))]
        for name, _ in token_inputs(batch.x):
            tokens = read_tokens(batch, name, self.has_next)
            counts = tokens.is_asked
            if counts is not None and self.words == "all":
                after = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
                counts = after > 0  # up to the last of them
            kept = tokens.is_there if counts is None else counts
            for row, ids, keep in zip(found, tokens.ids, kept, strict=True):
                row += ids[keep].tolist()
        return found


def _texts(x: Any) -> list[list[str]]:
    """The inputs that are texts, `[n]` each."""
    return [
        [as_text(value) for value in array.reshape(-1).tolist()]
        for _, array in named_arrays(x)
        if array.dtype.kind in "OSU" and array.size == len(array)
    ]
