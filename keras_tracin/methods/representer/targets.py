"""The logit that a query asks about, and the direction towards its target.

A softmax's logits stand for its classes. One sigmoid stands for two: label 1
is its logit raised, label 0 its logit lowered. In a regression every output is
raised.

Synopsis:

    meaning = meaning_of(head, model, loss=None, y=labels)
    targets = meaning.targets("predicted", queries, logits)
    targets.outputs     # [m] indices of logits
    targets.signs       # [m] +1, or -1 where lower is towards the target
"""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np

from keras_tracin.losses.expected_outputs import (
    ExpectedOutputs,
    choice_of,
)
from keras_tracin.methods.representer.features import Representations
from keras_tracin.methods.representer.head import Head

Target = int | str


@dataclasses.dataclass(frozen=True)
class Targets:
    """The logits that queries ask about, and the direction of their targets.

    Attributes:
        outputs: indices of logits, `[m]`.
        signs: +1, or -1 where a lower logit is towards the target, `[m]`.
    """

    outputs: np.ndarray
    signs: np.ndarray


@dataclasses.dataclass(frozen=True)
class Meaning:
    """The meaning of a model's logits.

    Attributes:
        kind: "classes", a logit for each class; "sides", a logit that is high
            for one of two classes and low for the other; or "numbers", those
            of a regression.
        outputs: number of logits.
    """

    kind: str
    outputs: int

    def targets(
        self, target: Target, queries: Representations, logits: np.ndarray
    ) -> Targets:
        """The targets of queries.

        Args:
            target: "label", "predicted", or the index of a class or output.
            queries: `m` examples with their labels.
            logits: `[m, k]` of the user's model.

        Raises:
            ValueError: if it names no target these queries have.
        """
        self.check(target)
        count = len(queries)
        if not isinstance(target, str):
            return self._all(int(target), count)
        if self.kind == "numbers":
            return self._all(0, count)
        if self.kind == "sides":
            high = logits if target == "predicted" else _flat(queries.y) - 0.5
            return Targets(
                np.zeros(count, int), np.where(high.reshape(-1) > 0, 1, -1)
            )
        if target == "predicted":
            return Targets(logits.argmax(axis=1), np.ones(count, int))
        return Targets(self._labels(queries), np.ones(count, int))

    def check(self, target: Target) -> None:
        """Raises ValueError if this model has no such target."""
        if isinstance(target, str) and target in ("label", "predicted"):
            if self.kind != "classes" and self.outputs > 1:
                raise ValueError(
                    f"`target={target!r}` needs a model whose prediction is "
                    f"one class or one number. Received: {self.outputs} "
                    "outputs that do not exclude each other. Pass the index "
                    "of an output as `target`."
                )
            return
        whole = isinstance(target, int | np.integer) and not isinstance(
            target, bool
        )
        if not whole or not 0 <= int(target) < self._choices:
            raise ValueError(
                "`target` should be 'label', 'predicted' or the index of a "
                f"class, 0 to {self._choices - 1}. Received: {target!r}."
            )

    @property
    def _choices(self) -> int:
        """One more than the largest index."""
        one_sigmoid = self.kind == "sides" and self.outputs == 1
        return 2 if one_sigmoid else self.outputs

    def _all(self, index: int, count: int) -> Targets:
        sign = 1
        if self.kind == "sides" and self.outputs == 1:
            index, sign = 0, 2 * index - 1
        return Targets(np.full(count, index), np.full(count, sign))

    def _labels(self, queries: Representations) -> np.ndarray:
        labels = _class_ids(queries.y, self.outputs)
        outside = (labels < 0) | (labels >= self.outputs)
        if outside.any():
            raise ValueError(
                f"Labels should be classes 0 to {self.outputs - 1}. Received: "
                f"{labels[outside].tolist()} for examples with ids "
                f"{queries.ids[outside].tolist()}. Pass `target='predicted'` "
                "or a class index for queries without a label of their own."
            )
        return labels


def meaning_of(head: Head, model: keras.Model, loss: Any, y: Any) -> Meaning:
    """The meaning of logits, from the activation, the loss and the labels.

    Args:
        head: the last layer.
        model: the model, for its compiled loss.
        loss: used in place of the compiled loss.
        y: the labels of some examples.
    """
    outputs, labels = head.weights.shape[1], _flat(y)
    are_classes = labels.size == len(labels) and labels.dtype.kind in "iu"
    kind = choice_of(head.activation, ExpectedOutputs.of(model, loss))
    if kind is None and outputs > 1 and are_classes:
        kind = "classes"  # a loss of the user's, and labels that are classes
    return Meaning(kind or "numbers", outputs)


def _flat(y: Any) -> np.ndarray:
    """The labels of a model with one output, from any structure."""
    (labels,) = keras.tree.flatten(y)
    return np.asarray(labels)


def _class_ids(y: Any, outputs: int) -> np.ndarray:
    """Labels as class ids `[m]`, from ids or from one-hot rows."""
    labels = _flat(y)
    if labels.ndim == 2 and labels.shape[1] == outputs > 1:
        return labels.argmax(axis=1)
    return np.rint(labels.reshape(-1)).astype(np.int64)
