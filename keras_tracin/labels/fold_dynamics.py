"""How copies of a model, each trained on all but a fold, saw all examples.

Synopsis:

    copies = Folds(3, fit).measure(model, train)      # FoldDynamics
    copies.out_of_fold.mean_probabilities    # [n, classes]
    scores = [copy.mean_loss for copy in copies.copies]
    outside, inside = copies.split(scores)   # [n] each
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_tracin.data.ids import Reading
from keras_tracin.labels.dynamics import TrainingDynamics

_AVERAGED = ("loss", "margin", "correct", "probability", "residual")


@dataclasses.dataclass(frozen=True)
class FoldDynamics:
    """The dynamics of copies that were each trained on all but a fold.

    Attributes:
        copies: of each copy, the dynamics of all examples, in the same order.
        fold_of: `[n]`, the place of the copy that was not trained on it.
    """

    copies: tuple[TrainingDynamics, ...]
    fold_of: np.ndarray

    def __len__(self) -> int:
        return len(self.fold_of)

    def __repr__(self) -> str:
        return (
            f"<FoldDynamics of {len(self)} examples, {len(self.copies)} copies>"
        )

    @property
    def ids(self) -> np.ndarray:
        """The ids, `[n]`."""
        return self.copies[0].ids

    def split(
        self, scores: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores by the copy that an example is new to, and by the others.

        Args:
            scores: of each copy, `[n]`.

        Returns:
            Those of the one, and means of the others, `[n]` each.
        """
        table = np.stack(scores)
        outside = table[self.fold_of, np.arange(len(self))]
        return outside, (table.sum(axis=0) - outside) / (len(table) - 1)

    @property
    def out_of_fold(self) -> TrainingDynamics:
        """Each example by the copy that it is new to, averaged over epochs.

        These are the dynamics of a single checkpoint.
        """
        first = self.copies[0]
        parts: dict[str, Any] = {
            name: self._outside([getattr(c, name).mean(0) for c in self.copies])
            for name in _AVERAGED
            if getattr(first, name) is not None
        }
        if first.error is not None:
            squares = [np.square(c.known("error")).mean(0) for c in self.copies]
            parts["error"] = np.sqrt(self._outside(squares))
        probabilities = None
        means: list[Any] = [copy.mean_probabilities for copy in self.copies]
        if first.mean_probabilities is not None:
            probabilities = np.stack(means)[self.fold_of, np.arange(len(self))]
        return TrainingDynamics(
            ids=self.ids,
            epochs=np.zeros(1, int),
            kind=first.kind,
            given_labels=first.given_labels,
            mean_probabilities=probabilities,
            early_probabilities=probabilities,
            **parts,
        )

    def _outside(self, means: Sequence[np.ndarray]) -> np.ndarray:
        return self.split(means)[0][np.newaxis]

    def held_out_loss(self, epochs: np.ndarray) -> np.ndarray | None:
        """The loss on the folds at some epochs, `[k]`; None if one is missing.

        Args:
            epochs: numbers of epochs, `[k]`.
        """
        losses = []
        for copy in self.copies:
            if not np.isin(epochs, copy.epochs).all():
                return None
            rows = np.searchsorted(copy.epochs, epochs)
            losses.append(copy.known("held_out_loss")[rows])
        return np.mean(losses, axis=0)

    def reordered(self, ids: np.ndarray) -> FoldDynamics:
        """The same with the examples in another order.

        Args:
            ids: all their ids, in that order.

        Raises:
            ValueError: if one is not there, or ids repeat.
        """
        rows = Reading(self.ids, "train").places(ids)
        copies = tuple(copy.reordered(ids) for copy in self.copies)
        return FoldDynamics(copies, self.fold_of[rows])
