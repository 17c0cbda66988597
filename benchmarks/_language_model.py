"""A causal model of WikiText-2 that starts from weights learnt elsewhere.

Few words are not enough to learn a language, and trainings that start at random
differ by chance more than by their examples. So the model first reads
DBpedia's texts, once; each training goes on from there.
"""

import csv
import functools
import gzip
import os
import pathlib
import re

import keras
import numpy as np

from examples import _language
from keras_tracin.storage.arrays import load_arrays, save_arrays

Arrays = tuple[np.ndarray, np.ndarray]

VOCABULARY = 8_200  # EK-FAC takes larger ones as it takes this one
NUM_TRAIN = 2_000  # sequences
_EPOCHS, _BATCH = 3, 32  # of the first training


@functools.cache
def _articles(data_dir: str, part: str) -> list[_language.Article]:
    return _language.read_articles(pathlib.Path(data_dir, "wikitext2"), part)


@functools.cache
def vocabulary(data_dir: str) -> _language.Vocabulary:
    """The words of the part that is trained on."""
    return _language.Vocabulary(_articles(data_dir, "valid"), VOCABULARY)


def load_wikitext2(data_dir: str, num_test: int) -> tuple[Arrays, Arrays]:
    """Word ids and those that follow, `[n, 64]` each, of two parts."""

    def some(part: str, count: int) -> Arrays:
        articles = _articles(data_dir, part)
        x, y, _ = _language.windows(articles, vocabulary(data_dir))
        rows = np.random.default_rng(0).permutation(len(x))[:count]
        return x[rows], y[rows]

    return some("valid", NUM_TRAIN), some("test", num_test)


def build() -> keras.Model:
    """Two blocks of width 64: 1.1 million weights."""
    return _language.causal_model(VOCABULARY)


def learn_elsewhere(data_dir: str, path: pathlib.Path) -> None:
    """Trains on DBpedia, unless the weights are on disk."""
    if path.is_file():
        return
    source = pathlib.Path(data_dir, "dbpedia", "train.csv.gz")
    with gzip.open(source, "rt", encoding="utf-8") as file:
        texts = [row[-1] for row in csv.reader(file)]
    articles = [
        _language.Article("", [*re.findall(r"\w+|[^\w\s]", t), _language.END])
        for t in texts
    ]
    x, y, _ = _language.windows(articles, vocabulary(data_dir))
    keras.utils.set_random_seed(0)
    model = build()
    steps = _EPOCHS * -(-len(x) // _BATCH)
    rate = keras.optimizers.schedules.CosineDecay(3e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, batch_size=_BATCH, epochs=_EPOCHS, verbose=2)
    weights = {f"{at:03}": w for at, w in enumerate(model.get_weights())}
    save_arrays(path, weights, unique=True)


@functools.cache
def weights_at(path: str | os.PathLike) -> list[np.ndarray]:
    """The weights that `learn_elsewhere` wrote."""
    arrays = load_arrays(path, "Delete it and call again.")
    return [arrays[name] for name in sorted(arrays)]
