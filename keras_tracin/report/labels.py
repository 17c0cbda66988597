"""Labels, predictions and their classes, as the page shows them.

Synopsis:

    labels = label_values(batch.y)                  # [n], from data.labels
    classes = Classes.from_labels([labels], class_names=None)
    classes.codes(labels)                           # what the page stores
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_tracin.data.kinds import as_text
from keras_tracin.data.labels import plain_values

_MOST_CLASSES = 1_000  # with more distinct labels, there are no classes


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions of a model for several examples.

    Attributes:
        values: predicted classes `[n]`, or numbers or strings.
        confidence: probabilities `[n]` of the predicted classes, or None.
        num_classes: number of classes, or 0 if unknown.
    """

    values: np.ndarray
    confidence: np.ndarray | None = None
    num_classes: int = 0

    @classmethod
    def from_outputs(
        cls, outputs: np.ndarray, labels: np.ndarray
    ) -> Predictions:
        """Interprets outputs as classes, scores of classes `[n, c]` or numbers.

        Args:
            outputs: outputs of a model, or predicted classes; `[n, ...]`.
            labels: labels of the same examples, from `label_values`. If they
                are classes, a single output from 0 to 1 is the probability of
                class 1.
        """
        outputs = outputs.reshape(len(outputs), -1)
        if outputs.shape[1] > 1:
            best = outputs.argmax(axis=1)
            confidence = outputs.max(axis=1) if _is_probable(outputs) else None
            return cls(best, confidence, outputs.shape[1])
        values = plain_values(outputs[:, 0])
        is_probability = (
            values.dtype.kind == "f"
            and labels.dtype.kind == "i"
            and _between_0_and_1(values)
        )
        if not is_probability:
            return cls(values)
        predicted = (values >= 0.5).astype(int)
        return cls(predicted, np.maximum(values, 1 - values), 2)


def predictions_for(
    predictions: Mapping | Any, ids: np.ndarray, carries_ids: bool, name: str
) -> np.ndarray:
    """The predictions for the examples with these ids.

    Args:
        predictions: one row for each example in reading order, or a mapping
            by id.
        ids: ids `[k]` to look up.
        carries_ids: True if ids were attached to the data, so that they are
            not positions.
        name: name of the predictions in errors.

    Raises:
        ValueError: if an id has no prediction.
    """
    if isinstance(predictions, Mapping):
        missing = [id_ for id_ in ids.tolist() if id_ not in predictions]
        if missing:
            raise ValueError(
                f"`{name}` should hold a prediction for every id on the page. "
                f"It lacks {missing[:5]}."
            )
        return np.stack([np.asarray(predictions[i]) for i in ids.tolist()])
    outputs = np.asarray(predictions)
    if carries_ids:
        raise ValueError(
            f"`{name}` should be a dict by id, since ids were attached to the "
            "data and its order may change. Received: an array of shape "
            f"{outputs.shape}. Pass `dict(zip(ids, predictions))`."
        )
    if not outputs.ndim or len(outputs) <= ids.max(initial=-1):
        raise ValueError(
            f"`{name}` should have one row for each example. Received: shape "
            f"{outputs.shape}, while there is an example {ids.max()}."
        )
    return outputs[ids]


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of labels; empty if labels are not classes.

    Attributes:
        values: values of the classes in the labels.
        names: names of the classes on the page.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def from_labels(
        cls,
        labels: Sequence[np.ndarray],
        class_names: Sequence[Any] | None,
        num_classes: int = 0,
    ) -> Classes:
        """The classes that occur or, with `class_names`, all that have a name.

        Args:
            labels: arrays `[n]` of labels and predictions.
            class_names: names of the classes 0, 1, …; if labels are strings,
                their possible values.
            num_classes: number of classes of the model, or 0 if unknown.

        Raises:
            ValueError: if a label has no name, or if some are numbers and
                others strings.
        """
        is_text = any(part.dtype.kind == "U" for part in labels)
        if is_text and any(part.dtype.kind != "U" for part in labels):
            raise ValueError(
                "Labels and predictions should all be numbers or all be "
                f"strings. Received: {[part.dtype.str for part in labels]}."
            )
        present: set = set().union(*(part.tolist() for part in labels))
        if class_names is not None:
            names = tuple(str(name) for name in class_names)
            values = names if is_text else tuple(range(len(names)))
            unknown = sorted(present - set(values))[:5]
            if unknown:
                raise ValueError(
                    "`class_names` should have a name for every label. "
                    f"Received: {len(names)} names, and labels or "
                    f"predictions {unknown}."
                )
            return cls(values, names)
        is_number = any(part.dtype.kind == "f" for part in labels)
        if is_number or len(present) > _MOST_CLASSES:
            return cls((), ())
        if not is_text:
            present |= set(range(min(num_classes, _MOST_CLASSES)))
        values = tuple(sorted(present))
        return cls(values, tuple(map(str, values)))

    def codes(self, labels: np.ndarray) -> list[int | str]:
        """Indices of labels among the classes, or the labels as strings."""
        if not self.values:
            return [as_text(value) for value in labels.tolist()]
        index = {value: i for i, value in enumerate(self.values)}
        return [index[value] for value in labels.tolist()]


def _is_probable(outputs: np.ndarray) -> bool:
    """Whether each row holds the probabilities of all classes."""
    sums = outputs.sum(axis=1, dtype=np.float64)
    return _between_0_and_1(outputs) and np.allclose(sums, 1, atol=1e-2)


def _between_0_and_1(values: np.ndarray) -> bool:
    return bool((values >= 0).all() and (values <= 1).all())
