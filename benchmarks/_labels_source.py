"""Trainings on a data set whose labels are right, or were made wrong."""

import functools
import json
import pathlib

import keras
import numpy as np

from benchmarks._labels_settings import CLEAN, DATASETS
from benchmarks._quality_settings import Arrays
from benchmarks._quality_training import Trained, fit_once

BATCH_SIZE = 64


@functools.cache
def _load(name: str, data_dir: str, num_train: int) -> tuple[Arrays, Arrays]:
    """Training and test examples, once for all seeds."""
    return DATASETS[name].load(data_dir, num_train)


class Source:
    """A data set with right labels, and a network trained on these.

    Args:
        name: a name of `DATASETS`.
        seed: seed of the training.
        cache_dir: directory of all results.
        data_dir: folder that holds tfds/ and dbpedia/.
        epochs: number of epochs; 0 for the data set's own.
        num_train: number of training examples; 0 for the data set's own.
    """

    def __init__(
        self,
        name: str,
        seed: int,
        cache_dir: str,
        data_dir: str,
        epochs: int = 0,
        num_train: int = 0,
    ):
        self.name, self.seed = name, seed
        self._dataset, self._data_dir = DATASETS[name], data_dir
        self._epochs = epochs or self._dataset.epochs
        self._count = num_train or self._dataset.num_train
        self.cache = pathlib.Path(cache_dir)

    @property
    def setting(self) -> dict[str, int]:
        """What results depend on beside the name and the seed."""
        return {"epochs": self._epochs, "num_train": self._count}

    @functools.cached_property
    def parts(self) -> tuple[Arrays, Arrays, Arrays]:
        """Training, held-out and test examples."""
        (x, y), test = _load(self.name, self._data_dir, self._count)
        cut = len(x) - len(x) // 10
        return (x[:cut], y[:cut]), (x[cut:], y[cut:]), test

    @functools.cached_property
    def trained(self) -> Trained:
        """The network that was trained on right labels."""
        return self.fit(*self.parts[:2], self.folder(CLEAN) / "run")

    def folder(self, noise: str) -> pathlib.Path:
        """The directory of a kind of labels; refuses other options' results.

        Args:
            noise: a name of `NOISES`.
        """
        folder = self.cache / f"{self.name}-{noise}-{self.seed}"
        config = self.setting
        path = folder / "config.json"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config))
        elif (other := json.loads(path.read_text())) != config:
            raise ValueError(
                f"{folder} has results of {other}. Received: {config}. Choose "
                "another --cache_dir."
            )
        return folder

    def fit(self, train: Arrays, held_out: Arrays, folder: pathlib.Path):
        """Trains a network, or loads the training from disk."""
        keras.utils.set_random_seed(self.seed)
        model = self._dataset.compiled(len(train[0]), self._epochs)
        return fit_once(
            model, train, folder, self._epochs, BATCH_SIZE, held_out
        )

    def logits(self, part: int) -> np.ndarray:
        """Logits of that network for the training or held-out examples."""
        x, _ = self.parts[part]
        return self.trained.model.predict(x, batch_size=512, verbose=0)
