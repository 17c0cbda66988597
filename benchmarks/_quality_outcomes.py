"""Outcomes of retraining, as small files for whoever has new scores."""

import json
import pathlib
import zlib

import numpy as np

from keras_tracin.evaluation import Retrained
from keras_tracin.storage.arrays import load_arrays, save_arrays


def describe(config: dict, *data: tuple) -> str:
    """What outcomes depend on, as text.

    Args:
        config: of the training.
        *data: its arrays, and those of the queries.
    """
    sums = [zlib.crc32(np.ascontiguousarray(a)) for part in data for a in part]
    return json.dumps(config | {"data": sums}, sort_keys=True)


def save(path: pathlib.Path, outcomes: Retrained, setting: str) -> None:
    """Writes outcomes, with a bit for each example of a subset."""
    arrays = {
        "masks": np.packbits(outcomes.masks, axis=1),
        "each": outcomes.each.astype(np.float32),
        "setting": np.array(setting),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_arrays(path, arrays)


def load(
    path: pathlib.Path, setting: str, num_train: int, num_subsets: int
) -> Retrained | None:
    """Reads outcomes; None if there are none, or of fewer subsets.

    Args:
        path: the file.
        setting: what they depend on.
        num_train: number of training examples.
        num_subsets: number of subsets, of which there may be more.

    Raises:
        ValueError: if the outcomes are of another setting.
    """
    if not path.is_file():
        return None
    arrays = load_arrays(path, "Choose another --outcomes_dir.")
    received = str(arrays["setting"])
    if received != setting:
        raise ValueError(
            f"{path} has outcomes of {received}. Expected: {setting}. Choose "
            "another --outcomes_dir."
        )
    if len(arrays["masks"]) < num_subsets:
        return None
    packed = arrays["masks"][:num_subsets]
    masks = np.unpackbits(packed, axis=1, count=num_train)
    each = arrays["each"][:num_subsets].astype(np.float64)
    return Retrained(
        masks.astype(bool),
        each,
        np.arange(num_train),
        np.arange(each.shape[2]),
    )
