"""How the model saw each training example in the course of a training.

Synopsis:

    dynamics = kt.training_dynamics(model, train, "runs/digits", verbose=0)
    dynamics.mean_loss                       # [n], and other scores
    dynamics.first(3).el2n                   # of the first three epochs
    dynamics.to_dataframe().sort_values("area_under_margin")
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from keras_tracin.data.ids import Reading
from keras_tracin.results.frames import pandas
from keras_tracin.results.saved import load_saved, save_fields

EARLY = 2  # checkpoints
_NORMAL = 1.4826  # standard deviations in a median absolute deviation

# The properties of a table, each a number for each example.
_SCORES = (
    "mean_loss",
    "area_under_margin",
    "confidence",
    "variability",
    "correctness",
    "forgetting_events",
    "el2n",
    "grand",
    "robust_residual",
)
_NEEDS = {
    "margin": "a classification",
    "correct": "a classification",
    "probability": "a classification whose outputs tell probabilities",
    "error": "a classification whose outputs tell probabilities",
    "held_out_loss": "a run of a training with `validation_data=`",
    "residual": "a regression",
    "gradient_norm": "`training_dynamics(..., gradients=True)`",
}


@dataclasses.dataclass(frozen=True)
class TrainingDynamics:
    """How the model saw each training example at each checkpoint.

    Everything is measured in inference mode and before weights of examples.
    What an example with several positions or labels has is the mean over
    those that count, weighted as the loss weighs them. Arrays are None where
    there is no such thing, as margins in a regression; properties made of
    them raise a ValueError then.

    Attributes:
        ids: `[n]`.
        epochs: `[k]`, the epochs of the checkpoints; 0 for the weights that
            the model has.
        kind: the labels: "classes", one for each example; "labels", several
            that are each right or wrong; "sequences", one at each position;
            or "numbers", a regression.
        loss: `[k, n]`, the loss.
        margin: `[k, n]`, the logit of the given label less the largest other.
            Probabilities whose logits are not known are taken by their
            logarithms, those below 1e-38 as that.
        correct: `[k, n]`, the share of labels that are predicted.
        probability: `[k, n]`, that of the given label.
        error: `[k, n]`, ‖p − y‖, with p the probabilities and y the given
            label as a one-hot vector; a single output counts as two classes.
            Of several positions or labels the root of the mean square.
        residual: `[k, n]`, the absolute residual of a regression; of several
            numbers, the root of the mean square.
        gradient_norm: `[k, n]`, the length of the gradient of the weighted
            loss, where it was asked for.
        given_labels: `[n]` class indices, of "labels" `[n, labels]`.
        mean_probabilities: `[n, classes]` means over the checkpoints; of
            "labels" `[n, labels]`.
        early_probabilities: the same over the first two checkpoints, which
            wrong labels have not yet been learnt by heart at.
        probabilities: `[k, n, classes]`, where they were asked for.
        held_out_loss: `[k]`, the mean loss of examples that were held out,
            `val_loss` of a run.
    """

    ids: np.ndarray
    epochs: np.ndarray
    kind: str
    loss: np.ndarray
    margin: np.ndarray | None = None
    correct: np.ndarray | None = None
    probability: np.ndarray | None = None
    error: np.ndarray | None = None
    residual: np.ndarray | None = None
    gradient_norm: np.ndarray | None = None
    given_labels: np.ndarray | None = None
    mean_probabilities: np.ndarray | None = None
    early_probabilities: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    held_out_loss: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        epochs = "the present weights"
        if self.epochs.any():
            first, last = self.epochs[[0, -1]]
            epochs = f"{len(self.epochs)} checkpoints, epochs {first}-{last}"
        return (
            f"<TrainingDynamics of {len(self)} examples with {self.kind}, "
            f"{epochs}>"
        )

    @property
    def mean_loss(self) -> np.ndarray:
        """The loss, averaged over the checkpoints, `[n]`."""
        return self.loss.mean(axis=0)

    @property
    def area_under_margin(self) -> np.ndarray:
        """The margin, averaged over the checkpoints, `[n]`.

        The lower, the more suspicious is the label (Pleiss et al. 2020).
        """
        return self.known("margin").mean(axis=0)

    @property
    def confidence(self) -> np.ndarray:
        """The mean probability of the given label, `[n]`.

        See Swayamdipta et al. (2020), as for `variability` and `correctness`.
        """
        return self.known("probability").mean(axis=0)

    @property
    def variability(self) -> np.ndarray:
        """The standard deviation of that probability, `[n]`."""
        return self.known("probability").std(axis=0)

    @property
    def correctness(self) -> np.ndarray:
        """The share of checkpoints that predict the given label, `[n]`."""
        return self.known("correct").mean(axis=0)

    @property
    def forgetting_events(self) -> np.ndarray:
        """How often an example was predicted rightly and then wrongly, `[n]`.

        Several labels of an example are right if all of them are. Examples
        that were never right count as forgotten at every checkpoint, where
        Toneva et al. (2019) take infinity; any other has at most half as many
        events. They compare the updates in which an example was in the batch,
        here checkpoints are compared.
        """
        right = self.known("correct") == 1
        events = (right[:-1] & ~right[1:]).sum(axis=0)
        return np.where(right.any(axis=0), events, len(self.epochs))

    @property
    def el2n(self) -> np.ndarray:
        """‖p − y‖, averaged over the checkpoints, `[n]`.

        Paul et al. (2021) take early epochs: `first(k).el2n`.
        """
        return self.known("error").mean(axis=0)

    @property
    def grand(self) -> np.ndarray:
        """The length of the gradient, averaged over the checkpoints, `[n]`.

        Early epochs are `first(k).grand` (Paul et al. 2021).
        """
        return self.known("gradient_norm").mean(axis=0)

    @property
    def robust_residual(self) -> np.ndarray:
        """Residuals in units of their spread, averaged over checkpoints, `[n]`.

        The spread at a checkpoint is the median of the absolute residuals
        times 1.4826, which is the standard deviation of normal ones and does
        not depend on the size of a few large ones.
        """
        residual = self.known("residual")
        spread = _NORMAL * np.median(residual, axis=1, keepdims=True)
        # Where most residuals are 0, the others have a spread of their own.
        spread = np.where(spread > 0, spread, residual.mean(1, keepdims=True))
        return (residual / np.where(spread > 0, spread, 1)).mean(axis=0)

    def first(self, epochs: int) -> TrainingDynamics:
        """The dynamics of the first epochs alone.

        Mean probabilities of them are known only where `probabilities` were
        kept; else measure anew with a part of the run.

        Args:
            epochs: number of epochs, 1 or more.

        Raises:
            ValueError: if no checkpoint is of these epochs.
        """
        rows = np.flatnonzero(self.epochs <= epochs)
        if not len(rows):
            raise ValueError(
                "`epochs` should be the epoch of the first checkpoint or more. "
                f"Received: {epochs!r}, with checkpoints of epochs "
                f"{self.epochs.tolist()}."
            )
        return self._at(rows)

    def best(self, count: int) -> TrainingDynamics:
        """The dynamics of the checkpoints with the least held-out loss alone.

        As for `first`, mean probabilities of them may be unknown.

        Args:
            count: number of checkpoints, at least 1; all if there are fewer.

        Raises:
            ValueError: if losses of held-out examples are not known, or
                `count` is below 1.
        """
        losses = self.known("held_out_loss")
        if count < 1:
            raise ValueError(
                f"`count` should be 1 or more. Received: {count!r}."
            )
        return self._at(np.sort(np.argsort(losses, kind="stable")[:count]))

    def _at(self, rows: np.ndarray) -> TrainingDynamics:
        """The dynamics of some checkpoints."""
        if len(rows) == len(self.epochs):
            return self
        parts: dict[str, Any] = {
            name: getattr(self, name)[rows]
            for name in _BY_CHECKPOINT
            if getattr(self, name) is not None
        }
        parts["mean_probabilities"] = None
        if self.probabilities is not None:
            parts["mean_probabilities"] = parts["probabilities"].mean(axis=0)
        if rows[:EARLY].tolist() != [*range(EARLY)]:
            parts["early_probabilities"] = None
            if self.probabilities is not None:
                early = parts["probabilities"][:EARLY].mean(axis=0)
                parts["early_probabilities"] = early
        return dataclasses.replace(self, **parts)

    def reordered(self, ids: np.ndarray) -> TrainingDynamics:
        """The same with the examples in another order.

        Args:
            ids: all their ids, in that order.

        Raises:
            ValueError: if one is not there, or ids repeat.
        """
        rows = Reading(self.ids, "train").places(ids)
        parts: dict[str, Any] = {"ids": self.ids[rows]}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in _BY_CHECKPOINT[2:] and value is not None:
                parts[field.name] = value[:, rows]
            elif field.name in _BY_EXAMPLE and value is not None:
                parts[field.name] = value[rows]
        return dataclasses.replace(self, **parts)

    def to_dataframe(self):
        """A `pandas.DataFrame` of the scores that there are, by `train_id`."""
        pd = pandas()
        columns = {}
        for name in _SCORES:
            try:
                columns[name] = getattr(self, name)
            except ValueError:
                continue  # there is no such thing
        if self.given_labels is not None and self.given_labels.ndim == 1:
            columns["given_label"] = self.given_labels
        index = pd.Index(self.ids, name="train_id")
        return pd.DataFrame(columns, index=index)

    def save(self, path: str | os.PathLike) -> None:
        """Writes one `.npz` file; it appears whole or not at all."""
        save_fields(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> TrainingDynamics:
        """Reads what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        arrays: dict[str, Any] = load_saved(path, names[:4], names[4:])
        return cls(**{**arrays, "kind": arrays["kind"].item()})

    def known(self, name: str) -> np.ndarray:
        """An array by its name.

        Args:
            name: name of the attribute.

        Raises:
            ValueError: if there is no such thing, with what it needs.
        """
        array = getattr(self, name)
        if array is None:
            raise ValueError(
                f"These training dynamics have no `{name}`, which needs "
                f"{_NEEDS[name]}. Received: {self!r}."
            )
        return array


_BY_EXAMPLE = ("given_labels", "mean_probabilities", "early_probabilities")
# The first two have no examples.
_BY_CHECKPOINT = (
    "epochs",
    "held_out_loss",
    "loss",
    "margin",
    "correct",
    "probability",
    "error",
    "residual",
    "gradient_norm",
    "probabilities",
)
