"""Counting along with a run that another process writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np


class Onlooker:
    """Replaces a `RunWriter` where another process writes the run.

    It counts along from where training began in this process, so that a
    callback goes the same way in all processes.
    """

    def __init__(self) -> None:
        self.last_step = self.last_epoch = self.last_saved_step = 0

    def append(
        self,
        model: keras.Model,
        arrays: Mapping[str, np.ndarray],
        *,
        epoch: int,
        epoch_end: bool,
        save_weights: bool,
        **recorded: Any,
    ) -> None:
        """Counts what `RunWriter.append`, of the same arguments, records."""
        self.last_step += len(arrays["learning_rate"])
        if epoch_end:
            self.last_epoch = epoch
        if save_weights:
            self.last_saved_step = self.last_step

    def close(self) -> None:
        """Does nothing: it holds nothing."""
