"""Labels and predictions in words, and the classes that they are of.

Synopsis:

    labels = label_values(batch.y)                  # [n]
    classes = Classes.of([labels], class_names=None)
    classes.codes(labels)                           # what the page stores
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.report.rendering import as_text

_MOST_CLASSES = 1_000  # more different labels than this are no classes


def label_values(y: Any) -> np.ndarray:
    """Labels as whole numbers, floats or strings `[n]`.

    Whole numbers also of one-hot rows and of floats that are whole; strings
    of anything that is more than one value.
    """
    leaves = [np.asarray(part) for part in tf.nest.flatten(y)]
    array = leaves[0].reshape(len(leaves[0]), -1)  # [n, p]
    if len(leaves) == 1 and array.shape[1] == 1:
        return _plain(array[:, 0])
    if len(leaves) == 1 and _is_one_hot(array):
        return array.argmax(axis=1)
    flat = [leaf.reshape(len(leaf), -1).tolist() for leaf in leaves]
    return np.array(
        [
            " ".join(as_text(value) for part in parts for value in part)
            for parts in zip(*flat, strict=True)
        ]
    )


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a model says of some examples.

    Attributes:
        values: `[n]` classes, numbers or strings.
        confidence: `[n]` probabilities of these, or None.
        num_classes: how many classes it chose from, or 0 where unknown.
    """

    values: np.ndarray
    confidence: np.ndarray | None = None
    num_classes: int = 0

    @classmethod
    def of(cls, outputs: np.ndarray, labels: np.ndarray) -> Predictions:
        """Reads classes, scores of classes `[n, c]`, or numbers.

        Args:
            outputs: what a model returned, or the classes; `[n, ...]`.
            labels: what `label_values` returned for the same examples. Where
                they are classes, one number from 0 to 1 is the probability
                of class 1.
        """
        outputs = outputs.reshape(len(outputs), -1)
        if outputs.shape[1] > 1:
            best = outputs.argmax(axis=1)
            confidence = outputs.max(axis=1) if _is_probable(outputs) else None
            return cls(best, confidence, outputs.shape[1])
        values = _plain(outputs[:, 0])
        is_probability = (
            values.dtype.kind == "f"
            and labels.dtype.kind == "i"
            and _between_0_and_1(values)
        )
        if not is_probability:
            return cls(values)
        chosen = (values >= 0.5).astype(int)
        return cls(chosen, np.maximum(values, 1 - values), 2)


def predictions_for(
    predictions: Mapping | Any, ids: np.ndarray, carries_ids: bool, name: str
) -> np.ndarray:
    """The predictions for the examples with these ids.

    Args:
        predictions: one for each example in reading order, or by id.
        ids: `[k]` of those wanted.
        carries_ids: whether ids were attached to the data, so that they are
            no positions.
        name: what errors call the predictions.

    Raises:
        ValueError: if there is none for an id.
    """
    if isinstance(predictions, Mapping):
        missing = [one for one in ids.tolist() if one not in predictions]
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
    """The classes of labels; none where labels are no classes.

    Attributes:
        values: as they are in the labels.
        names: as the page shows them.
    """

    values: tuple[Any, ...]
    names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        labels: Sequence[np.ndarray],
        class_names: Sequence[Any] | None,
        num_classes: int = 0,
    ) -> Classes:
        """The classes that occur, or all of those that have names.

        Args:
            labels: arrays `[n]` of labels and predictions.
            class_names: of the classes 0, 1, …; where labels are strings,
                their possible values.
            num_classes: at least as many as there are, where known.

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
        found: set = set().union(*(part.tolist() for part in labels))
        if class_names is not None:
            names = tuple(str(name) for name in class_names)
            values = names if is_text else tuple(range(len(names)))
            unknown = sorted(found - set(values))[:5]
            if unknown:
                raise ValueError(
                    "`class_names` should have a name for every label. "
                    f"Received: {len(names)} names, and labels or "
                    f"predictions {unknown}."
                )
            return cls(values, names)
        is_number = any(part.dtype.kind == "f" for part in labels)
        if is_number or len(found) > _MOST_CLASSES:
            return cls((), ())
        if not is_text:
            found |= set(range(min(num_classes, _MOST_CLASSES)))
        values = tuple(sorted(found))
        return cls(values, tuple(map(str, values)))

    def codes(self, labels: np.ndarray) -> list[int | str]:
        """The places of labels among the classes, or the labels as strings."""
        if not self.values:
            return [as_text(value) for value in labels.tolist()]
        place = {value: at for at, value in enumerate(self.values)}
        return [place[value] for value in labels.tolist()]


def _plain(values: np.ndarray) -> np.ndarray:
    """Booleans and whole floats as integers, bytes as strings."""
    if values.dtype.kind in "OSU":
        return np.array([as_text(value) for value in values.tolist()])
    if values.dtype.kind in "biu":
        return values.astype(int)
    values = values.astype(np.float64)
    is_whole = np.isfinite(values) & (values == np.round(values))
    return values.astype(int) if is_whole.all() else values


def _is_one_hot(array: np.ndarray) -> bool:
    if array.dtype.kind not in "biuf":
        return False
    ones = (array == 1).sum(axis=1)
    return bool((ones == 1).all() and np.count_nonzero(array) == len(array))


def _is_probable(outputs: np.ndarray) -> bool:
    """Whether each row holds the probabilities of all classes."""
    sums = outputs.sum(axis=1, dtype=np.float64)
    return _between_0_and_1(outputs) and np.allclose(sums, 1, atol=1e-2)


def _between_0_and_1(values: np.ndarray) -> bool:
    return bool((values >= 0).all() and (values <= 1).all())
