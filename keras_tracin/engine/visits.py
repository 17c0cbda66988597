"""Checkpoints whose weights a model has while steps run.

Synopsis:

    visit = Visit(checkpoint, np.float32(0.1), np.int32(2))
    print(name_of(visit.checkpoint))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from keras_tracin.runs import Checkpoint
from keras_tracin.storage.files import digest

Weights = Mapping[Checkpoint | None, float]

# The weights the model has, once: for methods without checkpoints.
PRESENT_WEIGHTS: Weights = {None: 1.0}


@dataclasses.dataclass(frozen=True)
class Visit:
    """A checkpoint whose weights the model has while steps run.

    Attributes:
        checkpoint: the checkpoint; None for the weights that the model has.
        rate: the checkpoint's factor in a sum over checkpoints.
        position: the checkpoint's place among those of the pass.
        sketched_at: `(position,)` for steps that project, else `()`.
    """

    checkpoint: Checkpoint | None
    rate: np.float32
    position: np.int32
    sketched_at: tuple[np.int32, ...] = ()


def name_of(checkpoint: Checkpoint | None) -> str:
    """A checkpoint in words; None for the weights that the model has."""
    if checkpoint is None:
        return "the model's present weights"
    return f"checkpoint '{checkpoint.path}' (epoch {checkpoint.epoch})"


def digest_of(checkpoint: Checkpoint) -> str:
    """The SHA-256 of a checkpoint's weights file."""
    return checkpoint.sha256 or digest(checkpoint.path)
