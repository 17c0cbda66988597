"""Similarities of words: BM25, and cosines of TF-IDF.

Synopsis:

    bm25 = kt.evaluation.BM25(train_texts)
    bm25.top_k(test_texts, k=10).proponents.ids
    kt.evaluation.lds(bm25.influence(test_texts), retrained)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import scipy

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.evaluation.baselines.similarity import Similarity
from keras_tracin.evaluation.baselines.words import (
    Word,
    WordReader,
    open_texts,
)

_SAMPLE = 256  # examples by which the form of the data is known


class _Lexical(Similarity):
    """A similarity of the words of examples.

    Args:
        train: the training examples.
        words: "weighted" or "all".
        tokenizer: splits a text into words.
        ignore: words, or ids of tokens, that are left out.
        memory_limit: bytes for scores.
    """

    def __init__(
        self,
        train: Any,
        words: str,
        tokenizer: Callable[[str], Iterable[Word]] | None,
        ignore: Iterable[Word],
        memory_limit: int | None,
    ):
        super().__init__(train, memory_limit)
        plain = {w.item() if isinstance(w, np.generic) else w for w in ignore}
        self._ignored = sorted(plain, key=repr)
        self._reader = WordReader.of(
            self._examples.first(_SAMPLE), words, tokenizer, self._ignored
        )

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {"words": self._reader.words, "ignore": self._ignored}

    def open(self, data: Any, name: str) -> Examples:
        """The examples in data, of texts or of ids of tokens."""
        return open_texts(data, name)

    def represent_train(self, batches: Iterable[Batch]) -> Any:
        """The rows of all training examples, sparse `[n, vocabulary]`."""
        texts = [words for b in batches for words in self._reader.read(b)]
        if not any(texts):
            raise ValueError(
                "The training examples have no words: all weights are zero, "
                "all texts are empty, or `ignore=` names all of their words."
            )
        return self._index(texts)

    def represent_queries(self, batch: Batch) -> Any:
        """The rows of queries, sparse `[m, vocabulary]`."""
        texts = self._reader.read(batch)
        empty = [
            id_
            for id_, words in zip(batch.ids.tolist(), texts, strict=True)
            if not words
        ]
        if empty:
            raise ValueError(
                "Each query should have a word to compare. Received none for "
                f"the ids {empty[:5]}: the text is empty, all of its weights "
                "are zero, or `ignore=` names all of its words."
            )
        return self._look_up(texts)

    def _index(self, texts: list[list[Word]]) -> Any:
        """Rows of the training examples, by their words."""
        raise NotImplementedError

    def _look_up(self, texts: list[list[Word]]) -> Any:
        """Rows of queries, by their words."""
        raise NotImplementedError


class BM25(_Lexical):
    """Okapi BM25: words in common, rare ones weighing more.

    Example:
    ```python
    bm25 = kt.evaluation.BM25((x_train, y_train))
    top = bm25.top_k((x_test, y_test), k=10)
    ```

        score(z, z') = Σ_{w ∈ z'} idf(w) · f / (f + k1 (1 − b + b |z| / mean))
        idf(w) = log(1 + (n − n_w + ½) / (n_w + ½))

    with f the number of times that z has the word, |z| its number of words,
    and n_w the number of training examples that have it; a word that the query
    repeats counts as often. It is the variant of Lucene, by the package
    `bm25s`, and needs the `baselines` extra. A word that no training example
    has counts nothing.

    Args:
        train: the training examples: texts, alone or as `fit` takes them, or
            ids of tokens `[n, tokens]`. Several inputs of texts or tokens
            count together.
        k1: how soon further occurrences of a word in z count less, 0 or more.
        b: how much long examples are discounted, from 0 to 1.
        words: of tokens with weights `[n, tokens]`, "weighted" takes those
            whose weight is not zero, which leaves padding out, and of queries
            takes the words that are asked about; "all" takes those before them
            as well, such as the prompt. Where labels are the next tokens, as
            of a language model, the weights are those of the labels. Without
            weights, tokens count where a mask beside them says so.
        tokenizer: function that splits a text into words, such as a tokenizer
            of KerasHub. By default words are runs of letters and digits, in
            lower case; in Chinese and Japanese, single characters.
        ignore: words, or ids of tokens, that are left out, such as that of
            padding.
        memory_limit: bytes for scores; half of what is free by default.

    Raises:
        ImportError: if bm25s is not installed.
        ValueError: if `k1`, `b` or `words` is out of range, or there are
            neither texts nor tokens. Queries without a word are an error of
            the call.
    """

    title = "BM25"

    def __init__(
        self,
        train: Any,
        *,
        k1: float = 1.5,
        b: float = 0.75,
        words: str = "weighted",
        tokenizer: Callable[[str], Iterable[Word]] | None = None,
        ignore: Iterable[Word] = (),
        memory_limit: int | None = None,
    ):
        if not k1 >= 0 or not 0 <= b <= 1:
            raise ValueError(
                "`k1` should be 0 or more, and `b` from 0 to 1. Received: "
                f"k1={k1!r}, b={b!r}."
            )
        self._class = _import_bm25()
        self._k1, self._b = float(k1), float(b)
        super().__init__(train, words, tokenizer, ignore, memory_limit)

    @property
    def settings(self) -> dict[str, Any]:
        """Options that scores depend on, as JSON, without reading any data."""
        return {"k1": self._k1, "b": self._b, **super().settings}

    @property
    def unit_options(self) -> dict[str, Any]:
        """Options on which the unit of scores depends, by name."""
        return {"k1": self._k1, "b": self._b}

    def _index(self, texts: list[list[Word]]) -> Any:
        """What each word of a query adds to the score of each example."""
        known: dict[Word, int] = {}
        rows = [[known.setdefault(w, len(known)) for w in t] for t in texts]
        retriever = self._class(
            k1=self._k1,
            b=self._b,
            method="lucene",
            dtype="float64",
        )
        with _silenced("bm25s"):
            retriever.index((rows, known.copy()), show_progress=False)
        parts = retriever.scores
        self._state["vocabulary"] = known
        return scipy.sparse.csc_array(
            (parts["data"], parts["indices"], parts["indptr"]),
            shape=(len(texts), len(known)),
        ).tocsr()

    def _look_up(self, texts: list[list[Word]]) -> Any:
        """How often each query has each word that is known."""
        known = self._state["vocabulary"]
        pairs = [
            (row, known[word])
            for row, words in enumerate(texts)
            for word in words
            if word in known
        ]
        places = np.array(pairs, int).reshape(-1, 2).T
        shape = len(texts), len(known)
        ones = np.ones(len(pairs))
        return scipy.sparse.coo_array((ones, places), shape=shape).tocsr()


class TFIDF(_Lexical):
    """Cosines of TF-IDF vectors: shares of words, rare ones weighing more.

    Example:
    ```python
    tfidf = kt.evaluation.TFIDF((x_train, y_train))
    scores = tfidf.influence((x_test, y_test))      # from 0 to 1
    ```

    It is scikit-learn's `TfidfVectorizer` with its defaults but for the
    words, which are those of `BM25`, and needs the `baselines` extra.

    Args:
        train: the training examples, as in `BM25`.
        words: as in `BM25`.
        tokenizer: as in `BM25`.
        ignore: as in `BM25`.
        memory_limit: bytes for scores; half of what is free by default.

    Raises:
        ImportError: if scikit-learn is not installed.
        ValueError: as `BM25`.
    """

    title = "TF-IDF"

    def __init__(
        self,
        train: Any,
        *,
        words: str = "weighted",
        tokenizer: Callable[[str], Iterable[Word]] | None = None,
        ignore: Iterable[Word] = (),
        memory_limit: int | None = None,
    ):
        self._class = _import_tfidf()
        super().__init__(train, words, tokenizer, ignore, memory_limit)

    def _index(self, texts: list[list[Word]]) -> Any:
        """Vectors of length 1."""
        vectorizer = self._class(analyzer=list)
        values = vectorizer.fit_transform(texts)
        self._state["vectorizer"] = vectorizer
        return values.tocsr()

    def _look_up(self, texts: list[list[Word]]) -> Any:
        """Vectors of length 1, of words that are known."""
        return self._state["vectorizer"].transform(texts)


@contextlib.contextmanager
def _silenced(name: str) -> Iterator[None]:
    """For a `with` block, a package logs warnings at most."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(before)


def _import_bm25() -> Any:
    try:
        from bm25s import BM25 as Retriever
    except ImportError as error:
        raise ImportError(_missing("BM25", "bm25s")) from error
    return Retriever


def _import_tfidf() -> Any:
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise ImportError(_missing("TFIDF", "scikit-learn")) from error
    return TfidfVectorizer


def _missing(name: str, package: str) -> str:
    return (
        f"`kt.evaluation.{name}` needs {package}, which is not installed. "
        "Install the `baselines` extra: pip install 'keras_tracin[baselines]'."
    )
