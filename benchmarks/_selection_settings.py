"""Data and networks to measure what is worth keeping, and what is not."""

import dataclasses
import functools
import pathlib

import keras
import numpy as np

from benchmarks._quality_settings import (
    Arrays,
    Setting,
    bag_of_words,
    load_dbpedia,
)
from examples import _common, _networks

NUM_TRAIN, NUM_HELD_OUT, NUM_TEST = 4_000, 1_000, 5_000
WRONG = 0.2  # share of wrong labels
GROUP = 3  # classes that a selection is for
QUERIES = 100  # held-out examples of these classes

_CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Training, held-out and test examples, with the right labels."""

    train: Arrays
    held_out: Arrays
    test: Arrays


def _images(data_dir: str) -> tuple[Arrays, Arrays]:
    count = NUM_TRAIN + NUM_HELD_OUT
    folder = str(pathlib.Path(data_dir, "tfds"))
    return (
        _common.load_images("mnist", f"train[:{count}]", folder),
        _common.load_images("mnist", f"test[:{NUM_TEST}]", folder),
    )


def _texts(data_dir: str) -> tuple[Arrays, Arrays]:
    return load_dbpedia(data_dir, NUM_TRAIN + NUM_HELD_OUT, NUM_TEST)


# By whose last epochs many wrong labels are known by heart.
SETTINGS = {
    "mnist": Setting(
        _images,
        functools.partial(_networks.digits_mlp, 128, 64),
        lambda: keras.optimizers.Adam(1e-3),
        _CLASSES,
        epochs=15,
    ),
    "mnist_cnn": Setting(
        _images,
        _networks.digits_cnn,
        lambda: keras.optimizers.Adam(1e-3),
        _CLASSES,
        epochs=15,
    ),
    "dbpedia": Setting(
        _texts,
        bag_of_words,
        lambda: keras.optimizers.Adam(0.005),
        _CLASSES,
        epochs=10,
    ),
}


@functools.cache
def load(name: str, data_dir: str) -> Parts:
    """The data of a setting."""
    (x, y), test = SETTINGS[name].load(data_dir)
    return Parts(
        (x[:NUM_TRAIN], y[:NUM_TRAIN]), (x[NUM_TRAIN:], y[NUM_TRAIN:]), test
    )


def edited(name: str, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Near-duplicates of examples, `[n, ...]`.

    Digits are cropped, by up to a pixel to each side; of a text one word is
    replaced and another left out.

    Args:
        name: a name of `SETTINGS`.
        x: the examples.
        rng: draws the changes.
    """
    change = _edit_words if name == "dbpedia" else _crop
    return np.stack([change(example, rng) for example in x])


def _crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = image.shape[:2]
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    places = [(a, b) for a in range(3) for b in range(3) if (a, b) != (1, 1)]
    top, left = places[rng.integers(len(places))]
    return padded[top : top + height, left : left + width]


def _edit_words(text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    words = text[: np.flatnonzero(text).max(initial=0) + 1].tolist()
    words[rng.integers(len(words))] = int(rng.integers(1, text.max() + 1))
    if len(words) > 1:
        del words[rng.integers(len(words))]
    changed = np.zeros_like(text)
    changed[: len(words)] = words
    return changed
