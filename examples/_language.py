"""Articles of WikiText-2 as sequences of words, and a causal model of them.

articles = read_articles(folder, "valid")
words = Vocabulary(articles, 8_000)
x, y, titles = windows(articles, words)
model = causal_model(len(words), x.shape[1])
"""

import collections
import dataclasses
import gzip
import os
import pathlib
import re

import keras
import numpy as np
from keras import layers

UNKNOWN, END = "<unk>", "<end>"  # END: of a paragraph, and so of a title
LENGTH = 64  # words of a sequence


@dataclasses.dataclass(frozen=True)
class Article:
    """A title, and the words of a text."""

    title: str
    words: list


class Vocabulary:
    """The most frequent words of some articles, and their numbers.

    Args:
        articles: the articles.
        size: number of words, with the unknown one, which has the number 0.
        more: words to have in any case.
    """

    def __init__(self, articles, size, more=()):
        counts = collections.Counter(
            word for article in articles for word in article.words
        )
        always = [UNKNOWN, END, *more]
        for word in always:
            del counts[word]
        common = counts.most_common(size - len(always))
        self.words = [*always, *(word for word, _ in common)]
        self._numbers = {word: at for at, word in enumerate(self.words)}

    def __len__(self):
        return len(self.words)

    def numbers(self, words):
        """The numbers of words, int32 `[n]`."""
        known = (self._numbers.get(word, 0) for word in words)
        return np.fromiter(known, np.int32)

    def text(self, numbers):
        """The words of these numbers."""
        return [self.words[number] for number in numbers]


def read_articles(folder, part):
    """The articles of a part of WikiText-2, "valid" or "test".

    Args:
        folder: directory of the parts, such as `wiki.valid.tokens`,
            `valid.txt` or `valid.txt.gz`.
        part: which part.

    Raises:
        FileNotFoundError: if there is none of these.
    """
    names = f"{part}.txt.gz", f"{part}.txt", f"wiki.{part}.tokens"
    paths = [pathlib.Path(folder, name) for name in names]
    source = next((path for path in paths if path.exists()), None)
    if source is None:
        raise FileNotFoundError(
            f"{folder} should have one of {', '.join(names)}."
        )
    open_file = gzip.open if source.suffix == ".gz" else open
    articles = []
    with open_file(os.fspath(source), "rt", encoding="utf-8") as file:
        for line in file:
            title = re.fullmatch(r" = ([^=].*[^=]) = \n", line)
            if title:
                articles.append(Article(title[1], []))
            if line.strip():
                articles[-1].words.extend([*line.split(), END])
    return articles


def windows(articles, vocabulary, length=LENGTH):
    """Cuts articles, one after the other, into sequences.

    Args:
        articles: the articles.
        vocabulary: a `Vocabulary`.
        length: words of a sequence.

    Returns:
        The words' numbers, those of the words that follow, both int32
        `[n, length]`, and the title of the article that each begins in.
    """
    titles = [article.title for article in articles for _ in article.words]
    numbers = vocabulary.numbers(
        word for article in articles for word in article.words
    )
    stop = (len(numbers) - 1) // length * length
    x, y = numbers[:stop], numbers[1 : stop + 1]
    return x.reshape(-1, length), y.reshape(-1, length), titles[:stop:length]


def causal_model(vocabulary, length=LENGTH, width=64, blocks=2, heads=2):
    """A transformer that predicts each next word, as logits.

    Args:
        vocabulary: number of words.
        length: words of a sequence.
        width: width of the blocks.
        blocks: number of blocks.
        heads: heads of attention in each.
    """
    words = keras.Input((length,), dtype="int32", name="words")
    # Positions are computed for each example, since what has no batch axis
    # has no gradient for each example.
    places = keras.ops.cumsum(keras.ops.ones_like(words), axis=1) - 1
    x = layers.Embedding(vocabulary, width, name="word_table")(words)
    x = x + layers.Embedding(length, width, name="place_table")(places)
    for at in range(blocks):
        y = layers.LayerNormalization(name=f"attention_norm_{at}")(x)
        attention = layers.MultiHeadAttention(
            heads, width // heads, name=f"attention_{at}"
        )
        x = x + attention(y, y, use_causal_mask=True)
        y = layers.LayerNormalization(name=f"dense_norm_{at}")(x)
        y = layers.Dense(4 * width, "gelu", name=f"widen_{at}")(y)
        x = x + layers.Dense(width, name=f"narrow_{at}")(y)
    x = layers.LayerNormalization(name="last_norm")(x)
    logits = layers.Dense(vocabulary, name="next_word")(x)
    return keras.Model(words, logits)
