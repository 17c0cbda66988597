"""Data, networks and trainings for comparisons with retraining."""

import csv
import dataclasses
import gzip
import pathlib
import re
from collections import Counter
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

import keras_tracin as kt
from benchmarks import _language_model, _models
from keras_tracin.curvature.solvers import Solver

Arrays = tuple[np.ndarray, np.ndarray]

QUERIES = 100  # that figures are of
TUNING = 50  # more, on which λ is chosen

_VOCABULARY, _WORDS = 5_000, 48
_SOLVERS: tuple[Solver, ...] = (
    kt.Arnoldi(200),
    kt.Exact(),
    kt.CG(1e-2),
    kt.LiSSA(steps=1000),
    kt.RandomizedSketch(500, steps=300),
)
_SMALL = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # where training went far
FEW_STEPS = kt.CG(1e-2, max_steps=10)
# In minutes, not hours, where one product with the curvature takes long.
_FEW_STEPS: tuple[Solver, ...] = (
    kt.Arnoldi(100),
    kt.CG(1e-2, max_steps=40),
    kt.LiSSA(steps=300),
)
_CLASSES = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@dataclasses.dataclass(frozen=True)
class Setting:
    """Data, a network and its training.

    Attributes:
        load: `data_dir -> (train, test)`, with the queries first.
        build: builds the network.
        optimizer: creates the optimizer.
        loss: loss of training.
        epochs: number of epochs.
        seeds: number of trainings on each subset.
        dampings: dampings of influence functions to choose from.
        solvers: solvers of influence functions; λ is chosen with the first.
        brittle: number of proponents to leave out for each of 30 queries; 0
            for none.
        batch_size: batch size of training.
        save_freq: `save_freq` of the recorded training.
        learn_elsewhere: `(data_dir, path)`: writes weights that trainings
            start from, unless they are there.
        start: those weights; None for random ones.
        sequences: whether each word of a sequence is predicted.
        draws: `draws` of EK-FAC.
    """

    load: Callable[[str], tuple[Arrays, Arrays]]
    build: Callable[[], keras.Model]
    optimizer: Callable[[], keras.Optimizer]
    loss: keras.losses.Loss
    epochs: int
    seeds: int = 2
    dampings: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    solvers: tuple[Solver, ...] = _SOLVERS
    brittle: int = 0
    batch_size: int = 64
    save_freq: int | str = "epoch"
    learn_elsewhere: Callable[[str, pathlib.Path], None] | None = None
    start: pathlib.Path | None = None
    sequences: bool = False
    draws: int | str = "auto"

    def prepared(self, data_dir: str, folder: pathlib.Path) -> "Setting":
        """The setting with the weights to start from, which are kept."""
        if self.learn_elsewhere is None:
            return self
        path = folder / "start.npz"
        self.learn_elsewhere(data_dir, path)
        return dataclasses.replace(self, start=path)

    def compiled(self, seed: int) -> keras.Model:
        """The network before training."""
        keras.utils.set_random_seed(seed)
        model = self.build()
        if self.start is not None:
            model.set_weights(_language_model.weights_at(self.start))
        model.compile(self.optimizer(), self.loss)
        return model

    def describe(self) -> dict:
        """JSON-compatible description of what outcomes depend on."""
        optimizer = self.optimizer()
        return {
            "network": [
                [weight.path.split("/")[-1], *weight.shape]
                for weight in self.build().weights
            ],
            # Not its name, which Keras numbers.
            "optimizer": [
                type(optimizer).__name__.lower(),
                float(optimizer.learning_rate),
            ],
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            **({"start": "DBpedia"} if self.learn_elsewhere else {}),
        }


def _images(name: str, split: str, count: int, data_dir: str) -> Arrays:
    import tensorflow_datasets as tfds

    x, y = tfds.load(
        name,
        split=f"{split}[:{count}]",
        data_dir=str(pathlib.Path(data_dir, "tfds")),
        download=False,
        as_supervised=True,
        batch_size=-1,
    )
    return x.numpy().astype(np.float32) / 255, y.numpy().astype(np.int32)


def _mnist(data_dir: str) -> tuple[Arrays, Arrays]:
    def vectors(split, count):
        x, y = _images("mnist", split, count, data_dir)
        return (x.reshape(count, -1) - 0.1307) / 0.3081, y

    return vectors("train", 5_000), vectors("test", QUERIES + TUNING)


def _cifar(data_dir: str) -> tuple[Arrays, Arrays]:
    def centred(split, count):
        x, y = _images("cifar10", split, count, data_dir)
        return (x - 0.47) / 0.25, y

    return centred("train", 2_000), centred("test", QUERIES + TUNING)


def load_dbpedia(
    data_dir: str, num_train: int = 2_000, num_test: int = QUERIES + TUNING
) -> tuple[Arrays, Arrays]:
    """Word ids `[n, 48]`; 0 for padding and unknown words."""

    def rows(split, count):
        path = pathlib.Path(data_dir, "dbpedia", f"{split}.csv.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            everything = list(csv.reader(file))
        order = np.random.default_rng(0).permutation(len(everything))
        chosen = [everything[at] for at in order[:count]]
        words = [re.findall(r"[a-z]+", row[-1].lower()) for row in chosen]
        return words, np.array([int(row[0]) - 1 for row in chosen], np.int32)

    train, y = rows("train", num_train)
    test, labels = rows("test", num_test)
    common = Counter(word for text in train for word in text)
    number = {
        word: at
        for at, (word, _) in enumerate(common.most_common(_VOCABULARY - 1), 1)
    }

    def numbered(texts):
        ids = np.zeros([len(texts), _WORDS], np.int32)
        for row, text in zip(ids, texts, strict=True):
            known = [number.get(word, 0) for word in text[:_WORDS]]
            row[: len(known)] = known
        return ids

    return (numbered(train), y), (numbered(test), labels)


def _housing(data_dir: str) -> tuple[Arrays, Arrays]:
    from sklearn.datasets import fetch_california_housing

    folder = str(pathlib.Path(data_dir, "california_housing"))
    x, y = fetch_california_housing(
        data_home=folder, download_if_missing=False, return_X_y=True
    )
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype(np.float32), y[order].astype(np.float32)
    x = np.clip((x - x[:2000].mean(0)) / x[:2000].std(0), -4, 4)
    y = ((y - y[:2000].mean()) / y[:2000].std())[:, np.newaxis]
    stop = 2_000 + QUERIES + TUNING
    return (x[:2_000], y[:2_000]), (x[2_000:stop], y[2_000:stop])


def _logistic() -> keras.Model:
    return keras.Sequential(
        [keras.Input((784,)), layers.Dense(_models.NUM_CLASSES)]
    )


def _mlp() -> keras.Model:
    """784-128-64-10 with Dropout: 109,386 weights."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(128, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.1),
            layers.Dense(_models.NUM_CLASSES),
        ]
    )


def _cnn() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            layers.Conv2D(16, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(_models.NUM_CLASSES),
        ]
    )


def bag_of_words() -> keras.Model:
    """The mean of word embeddings and two dense layers, for 14 classes."""
    return keras.Sequential(
        [
            keras.Input((_WORDS,), dtype="int32"),
            layers.Embedding(_VOCABULARY, 32),
            layers.GlobalAveragePooling1D(),
            layers.Dense(32, activation="relu"),
            layers.Dense(14),
        ]
    )


def _regression() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((8,)),
            layers.Dense(32, activation="tanh"),
            layers.Dense(16, activation="tanh"),
            layers.Dense(1),
        ]
    )


def _wikitext2(data_dir: str) -> tuple[Arrays, Arrays]:
    return _language_model.load_wikitext2(data_dir, QUERIES + TUNING)


def _momentum() -> keras.Optimizer:
    return keras.optimizers.SGD(0.01, momentum=0.9)


SETTINGS = {
    # Data, networks and trainings of the first two are those of dattri.
    "mnist_logistic": Setting(
        _mnist,
        _logistic,
        lambda: keras.optimizers.SGD(0.01),
        _CLASSES,
        epochs=20,
        seeds=3,
        brittle=100,
    ),
    "mnist_mlp": Setting(
        _mnist,
        _mlp,
        _momentum,
        _CLASSES,
        epochs=50,
        seeds=3,
        dampings=_SMALL,
        solvers=(FEW_STEPS, *_FEW_STEPS),
    ),
    "cifar10_cnn": Setting(
        _cifar,
        _cnn,
        _momentum,
        _CLASSES,
        epochs=15,
        dampings=(0.001, 0.01, 0.1),
        solvers=(kt.Arnoldi(50),),
    ),
    "dbpedia_words": Setting(
        load_dbpedia,
        bag_of_words,
        lambda: keras.optimizers.Adam(0.005),
        _CLASSES,
        epochs=10,
        dampings=_SMALL,
        solvers=_FEW_STEPS,
    ),
    "housing_mlp": Setting(
        _housing,
        _regression,
        lambda: keras.optimizers.Adam(0.003),
        keras.losses.MeanSquaredError(),
        epochs=30,
        dampings=(0.001, 0.01, 0.1, 1.0),
        batch_size=32,
    ),
    "wikitext2": Setting(
        _wikitext2,
        _language_model.build,
        lambda: keras.optimizers.Adam(1e-3),
        _CLASSES,
        epochs=2,
        dampings=_SMALL,
        solvers=(),
        batch_size=16,
        save_freq=25,
        learn_elsewhere=_language_model.learn_elsewhere,
        sequences=True,
        draws=1,  # of each of 64 places
    ),
}
