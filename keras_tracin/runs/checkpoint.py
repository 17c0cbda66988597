"""A checkpoint: the weights of a model at one moment of its training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import keras

from keras_tracin.runs.saved import SavedWeights, restore


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a model at one moment of its training.

    Its *interval* is the training since the previous checkpoint of the same
    `TrainingRun`, or since the beginning.

    Attributes:
        step: Number of optimizer updates that led to it, from the beginning
            of the run. None if unknown (`TrainingRun.from_weights`).
        epoch: The epoch in which it was taken, counted from 1.
        learning_rate: Mean of the rates applied in its interval: η_k. Where a
            step updated several sets of variables at several rates, the
            largest counts.
        learning_rate_sum: Their sum, or None if unknown.
        num_steps: Updates in its interval, or None if unknown.
        logs: The metrics at that moment.
        path: The Keras weights file.
        sha256: The digest of that file, if it was recorded.
        weights: `(path, shape, dtype)` of each of the model's weights, if
            that was recorded.
        exact: The file with the weights that Keras's does not hold as they
            were (LoRA, which it merges), None where it holds all.
        exact_sha256: The digest of that file, if it was recorded.
        digests: Digests of the model's weights at that moment, if they were
            recorded.
        updated: The variables that steps of its interval updated, by their
            positions in `model.weights`, and the mean rate of each: over all
            steps of the interval, 0 in those that did not update it, as where
            it was frozen. None if unknown (`TrainingRun.from_weights`, and
            runs that were recorded before this was).
    """

    step: int | None
    epoch: int
    learning_rate: float
    learning_rate_sum: float | None
    num_steps: int | None
    logs: Mapping[str, float] = field(hash=False)
    path: Path
    sha256: str | None = field(default=None, repr=False)
    weights: tuple = field(default=(), repr=False, hash=False)
    exact: Path | None = field(default=None, repr=False)
    exact_sha256: str | None = field(default=None, repr=False)
    digests: tuple[str, ...] = field(default=(), repr=False)
    updated: Mapping[int, float] | None = field(
        default=None, repr=False, hash=False
    )

    @property
    def saved(self) -> SavedWeights:
        """The files, and what is known of the weights in them."""
        return SavedWeights(
            path=self.path,
            sha256=self.sha256,
            exact=self.exact,
            exact_sha256=self.exact_sha256,
            digests=self.digests,
            weights=self.weights,
        )

    def restore(self, model: keras.Model) -> None:
        """Puts a model into this state, to continue training from here.

        Unlike `model.load_weights(path)`, this brings back every weight as it
        was, also those that Keras merges or leaves out as it saves, and the
        optimizer's state into a model that was only just compiled.

        Args:
            model: The model that was trained, or one built and compiled by
                the same code.

        Raises:
            ValueError: The model is not built or is another one; or a file is
                missing, damaged or does not hold the weights that training
                had. The model is as it was then.
        """
        restore(model, self.saved)
