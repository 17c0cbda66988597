"""Examples that a figure shows, with their labels as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch
from keras_tracin.data.labels import label_values
from keras_tracin.data.lookup import look_up
from keras_tracin.plots.sources import Source

_MOST_VALUES = 8  # of a label that is shown


@dataclasses.dataclass(frozen=True)
class Shown:
    """Examples of one data set, to be drawn.

    Attributes:
        name: name of the data, for errors.
        batch: the examples, each once.
        at: index in `batch` of what each place of the figure shows.
        labels: labels of `batch`, as text; None if there are none.
        is_wrong: whether these labels are wrong; None if that is unknown.
    """

    name: str
    batch: Batch
    at: np.ndarray
    labels: list[str] | None
    is_wrong: np.ndarray | None


def look_up_shown(
    source: Source,
    ids: np.ndarray,
    labels: dict[Any, Any] | None,
    class_names: Sequence[Any] | None,
    is_wrong: dict[Any, Any] | None = None,
) -> Shown:
    """Looks examples up, and their labels unless these are given.

    Args:
        source: the data.
        ids: ids of what each place of the figure shows, of any shape.
        labels: labels by id; None for those of the data.
        class_names: names of the classes 0, 1, …
        is_wrong: whether labels are wrong, by id; None if that is unknown.

    Raises:
        ValueError: if an id is not in the data, or a class has no name.
    """
    distinct, at = np.unique(ids, return_inverse=True)
    batch = look_up(source.examples, distinct)
    keys = distinct.tolist()
    values: list[Any] | None = None
    if labels is not None:
        values = [labels[key] for key in keys]
    elif _is_label(batch.y):
        values = label_values(batch.y).tolist()
    return Shown(
        source.examples.name,
        batch,
        at.reshape(ids.shape),
        None if values is None else _name_classes(values, class_names),
        None
        if is_wrong is None
        else np.array([bool(is_wrong[key]) for key in keys]),
    )


def _is_label(y: Any) -> bool:
    """Whether there are labels, and not so large as images or sentences."""
    leaves = [
        np.asarray(leaf) for leaf in tf.nest.flatten(y) if leaf is not None
    ]
    if not leaves:
        return False
    sizes = [int(np.prod(leaf.shape[1:])) for leaf in leaves]
    if len(leaves) == 1 and sizes[0] > 1:
        is_class = label_values(leaves[0]).dtype.kind in "iu"  # of one-hot rows
        return is_class or sizes[0] <= _MOST_VALUES
    return sum(sizes) <= _MOST_VALUES


def _name_classes(
    values: list[Any], class_names: Sequence[Any] | None
) -> list[str]:
    if class_names is None:
        return [str(value) for value in values]
    numbers = [value for value in values if not isinstance(value, str)]
    unknown = [
        v for v in numbers if v != int(v) or not 0 <= v < len(class_names)
    ]
    if unknown:
        raise ValueError(
            "`class_names` should have a name for every label. Received: "
            f"{len(class_names)} names, and a label {unknown[0]!r}."
        )
    return [
        value if isinstance(value, str) else str(class_names[int(value)])
        for value in values
    ]
