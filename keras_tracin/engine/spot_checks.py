"""Examples of a pass that are computed once more, alone.

A first look at a few examples does not show what happens in a batch of full
size, or far into the data. So, as a pass goes by, an example of each 2^k-th
batch is given to the same compiled step alone, where the same should come out.
A difference ends the pass before its results are kept.

Synopsis:

    spots = SpotChecks(model, loss)
    for number, batch in enumerate(batches):
        values = step(batch.data)                        # [..., n]
        spots.look(number, batch, values, step)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.engine.rounding import NOISE, is_learnt, tolerance_of
from keras_tracin.gradients.capture import PerExampleLoss
from keras_tracin.gradients.interaction import find_interaction
from keras_tracin.gradients.plain import perturb_weights
from keras_tracin.models.state import preserved


class SpotChecks:
    """Compares some examples of a pass with themselves alone.

    Args:
        model: the model, which has the weights of the pass.
        loss: `(y, y_pred, sample_weight) -> [n]`, to name a mistake.
        sparing: whether to check the first batch only, as where XLA compiles
            for a size and a single example takes as long as a batch.
        role: "training" or "query".
    """

    def __init__(
        self,
        model: keras.Model,
        loss: PerExampleLoss,
        sparing: bool = False,
        role: str = "training",
    ):
        self._role = role
        self._model, self._loss, self._sparing = model, loss, sparing
        self._tolerance = 2 * tolerance_of(model)  # of products of gradients

    def look(
        self,
        number: int,
        batch: Batch,
        values: np.ndarray,
        again: Callable[[Any], np.ndarray],
    ) -> None:
        """Compares examples of a batch, if it is one of those to look at.

        Args:
            number: place of the batch in its pass, from 0 on.
            batch: the examples.
            values: the step's results, `[..., n]`.
            again: computes the same for other data.

        Raises:
            ValueError: if an example's values depend on the rest of its batch.
        """
        rows = self._rows(number, len(batch))
        if not rows:
            return
        single = [
            tf.nest.map_structure(
                lambda leaf, row=row: leaf[row : row + 1], batch.data
            )
            for row in rows
        ]
        values_alone = []
        with preserved(self._model) as state:
            for data in single:
                values_alone.append(again(data)[..., 0])
                state.restore()
        for row, data, alone in zip(rows, single, values_alone, strict=True):
            within = values[..., row]
            # Another error names what is not a number.
            usable = np.where(np.isfinite(values), np.abs(values), 0)
            scale = usable.max(axis=-1)
            if self._alike(alone, within, scale, data, again):
                continue
            if is_learnt(self._model, self._loss, batch.data, [row]):
                continue
            self._complain(batch, row, alone, within)

    def wants(self, number: int) -> bool:
        """Whether a batch is one of those to look at."""
        is_power = not number & (number + 1)  # of two, counted from one
        return is_power and not (number and self._sparing)

    def _rows(self, number: int, count: int) -> list[int]:
        if count < 2 or not self.wants(number):
            return []
        drawn = int(np.random.default_rng(number).integers(count))
        if number or self._sparing:
            return [drawn]
        return sorted({0, drawn, count - 1})

    def _alike(self, alone, within, scale, data, again) -> bool:
        gap = np.abs(np.asarray(alone, float) - np.asarray(within, float))
        if np.all(gap <= self._tolerance * scale):
            return True
        if not np.isfinite(gap).all():
            return not np.isfinite(alone).all()  # which another error names
        with perturb_weights(self._model):
            noise = np.abs(again(data)[..., 0] - alone)
        return bool(
            np.all(gap <= self._tolerance * scale + NOISE * noise.max())
        )

    def _complain(self, batch: Batch, row: int, alone, within) -> None:
        rows = [row] if row else [row, len(batch) - 1]
        interaction = find_interaction(
            self._model, self._loss, batch.data, rows, backward=True
        )
        if interaction is not None and interaction.is_random:
            warnings.warn(str(interaction), stacklevel=2)
            return
        if interaction is not None:
            raise ValueError(str(interaction))
        worst = np.unravel_index(
            np.argmax(np.abs(alone - within)), np.shape(alone)
        )
        raise ValueError(
            "An example's gradient depends on the rest of its batch: for the "
            f"{self._role} example with id {batch.ids[row].item()!r} a number "
            f"made of it is {float(alone[worst]):.6g} alone and "
            f"{float(within[worst]):.6g} in its batch of {len(batch)}, "
            "expected the same. Look for what mixes examples, also on the way "
            "back, as `tf.custom_gradient` may."
        )
