"""Data sets, networks and kinds of wrong labels, to measure what finds them."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np

from benchmarks._quality_settings import Arrays, bag_of_words, load_dbpedia
from examples import _common, _networks
from keras_tracin.evaluation import flip_labels

Logits = Callable[[], np.ndarray]
Noise = Callable[[np.ndarray, Logits, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, and a network for it.

    Attributes:
        load: `(data_dir, num_train) -> (train, test)`; the last tenth of the
            training examples is to be held out.
        compiled: `(num_examples, epochs) -> model`, before training.
        num_train: number of training examples, including held-out ones.
        epochs: number of epochs.
    """

    load: Callable[[str, int], tuple[Arrays, Arrays]]
    compiled: Callable[[int, int], keras.Model]
    num_train: int
    epochs: int


def _load_images(
    name: str, data_dir: str, num_train: int
) -> tuple[Arrays, Arrays]:
    folder = f"{data_dir}/tfds"
    train = _common.load_images(name, f"train[:{num_train}]", folder)
    return train, _common.load_images(name, "test", folder)


def _load_texts(data_dir: str, num_train: int) -> tuple[Arrays, Arrays]:
    return load_dbpedia(data_dir, num_train, 5_000)


def _compiled_for_texts(num_examples: int, epochs: int) -> keras.Model:
    return _common.compile_classifier(
        bag_of_words(), keras.optimizers.Adam(0.005)
    )


# Images as in examples/find_mislabeled.py, and by a network that augments none;
# texts as in benchmarks/quality.py.
DATASETS = {
    "mnist": Dataset(
        functools.partial(_load_images, "mnist"),
        functools.partial(
            _networks.compile_with_decay, _networks.digits_cnn, 0.02
        ),
        num_train=60_000,
        epochs=8,
    ),
    "cifar10": Dataset(
        functools.partial(_load_images, "cifar10"),
        functools.partial(
            _networks.compile_with_decay, _networks.small_resnet, 0.1
        ),
        num_train=10_000,
        epochs=12,
    ),
    "cifar10-cnn": Dataset(
        functools.partial(_load_images, "cifar10"),
        functools.partial(
            _networks.compile_with_decay,
            functools.partial(_networks.digits_cnn, (32, 32, 3)),
            0.02,
        ),
        num_train=10_000,
        epochs=12,
    ),
    "dbpedia": Dataset(
        _load_texts, _compiled_for_texts, num_train=5_000, epochs=10
    ),
}


def _uniform(
    share: float, labels: np.ndarray, logits: Logits, seed: int
) -> np.ndarray:
    return flip_labels(labels, share, seed=seed)


def _likely(labels: np.ndarray, logits: Logits, seed: int) -> np.ndarray:
    return flip_labels(labels, 0.1, seed=seed, scores=logits())


def _pairs(labels: np.ndarray, logits: Logits, seed: int) -> np.ndarray:
    """Three tenths of each class become the next (Han et al. 2018)."""
    classes = int(labels.max()) + 1
    following = np.eye(classes)[(labels + 1) % classes]
    return flip_labels(labels, 0.3, seed=seed, scores=following)


def _boundary(labels: np.ndarray, logits: Logits, seed: int) -> np.ndarray:
    """A tenth, of the fifth that is nearest to the boundary.

    It is the boundary between the right class and the likeliest other.
    """
    outputs = logits()
    others, rows = outputs.copy(), np.arange(len(labels))
    others[rows, labels] = -np.inf
    distances = np.abs(outputs[rows, labels] - others.max(axis=1))
    near = np.argsort(distances, kind="stable")[: round(0.2 * len(labels))]
    corrupted = labels.copy()
    corrupted[near] = flip_labels(
        labels[near],
        0.5,
        seed=seed,
        num_classes=outputs.shape[1],
        scores=outputs[near],
    )
    return corrupted


def _unchanged(labels: np.ndarray, logits: Logits, seed: int) -> np.ndarray:
    return labels


CLEAN = "clean"

# Of labels, logits of a network that was trained on right labels, and a seed.
NOISES: dict[str, Noise] = {
    "uniform10": functools.partial(_uniform, 0.1),
    "uniform30": functools.partial(_uniform, 0.3),
    "likely": _likely,
    "pairs": _pairs,
    "boundary": _boundary,
    CLEAN: _unchanged,
}
