"""Trainings on subsets whose outcomes are kept, a file for each.

A file is named by a digest of all that the outcome depends on, so that what is
there is not trained again, and calls that need the same training share it.

Synopsis:

    trainings = Trainings(fit, data, directory, key, measure)
    trainings(mask, seed, "subset 3")["values"]
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_tracin.evaluation.retraining import Data
from keras_tracin.storage.arrays import load_arrays, save_arrays

Fit = Callable[[Any, int], keras.Model]
Measure = Callable[[keras.Model], Mapping[str, np.ndarray]]


class Trainings:
    """Trains on subsets, or reads what came of it before.

    Args:
        fit: `(data, seed) -> model`.
        data: all examples.
        directory: directory of the files; several processes may share it.
        key: what outcomes depend on beside subset and seed, as JSON.
        measure: the arrays to keep of a trained model, "values" among them.
    """

    def __init__(
        self,
        fit: Fit,
        data: Data,
        directory: str | os.PathLike,
        key: Mapping[str, Any],
        measure: Measure,
    ):
        self._fit, self._data, self._measure = fit, data, measure
        self._directory, self._key = Path(directory), dict(key)

    def path(self, mask: np.ndarray, seed: int) -> Path:
        """The file of a training.

        Args:
            mask: booleans `[n]`: True for the examples of the subset.
            seed: seed of the training.
        """
        text = json.dumps({**self._key, "seed": seed}, sort_keys=True)
        digest = hashlib.blake2b(text.encode(), digest_size=16)
        digest.update(np.packbits(mask).tobytes())
        return self._directory / f"{digest.hexdigest()}.npz"

    def __call__(
        self, mask: np.ndarray, seed: int, what: str
    ) -> dict[str, np.ndarray]:
        """The arrays of a training.

        Args:
            mask: as of `path`.
            seed: seed of the training.
            what: the subset in words, for errors.

        Raises:
            ValueError: if values are NaN or infinite, or the file is damaged.
        """
        path = self.path(mask, seed)
        if not path.is_file():
            arrays = self._measure(self._fit(self._data.rows(mask), seed))
            if not np.isfinite(arrays["values"]).all():
                raise ValueError(
                    f"Training on {what} with seed {seed} ended in values that "
                    "are NaN or infinite. Train with a smaller learning rate."
                )
            save_arrays(path, dict(arrays), unique=True)
        return load_arrays(
            path, "Delete it and call again: only this training is repeated."
        )


def check_seeds(seeds: Sequence[int]) -> list[int]:
    """Seeds as numbers.

    Raises:
        ValueError: if there are none, or two are equal.
    """
    numbers = [int(seed) for seed in seeds]
    if not numbers or len(set(numbers)) < len(numbers):
        raise ValueError(
            "`seeds` should hold a seed, or several that differ. Received: "
            f"{list(seeds)}."
        )
    return numbers


def progress(total: int, verbose: int) -> Callable[[], None]:
    """Counts trainings in a progress bar, if it is to be shown.

    Args:
        total: number of trainings.
        verbose: 0 for silence.
    """
    if not verbose:
        return lambda: None
    bar = keras.utils.Progbar(total, unit_name="training")
    return lambda: bar.add(1)
