"""The examples that a page shows, looked up by their ids.

Synopsis:

    shown = read(train, "train", ids, render="auto")
    shown.ids, shown.labels, shown.columns    # all in the order of `ids`
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Examples
from keras_tracin.data.examples import open_examples, select
from keras_tracin.report.labels import (
    Predictions,
    label_values,
    predictions_for,
)
from keras_tracin.report.rendering import View

_BATCH = 256  # examples read at a time


@dataclasses.dataclass(frozen=True)
class Shown:
    """Some examples of one data set.

    Attributes:
        name: of the data set.
        ids: `[k]`.
        labels: `[k]`, as `label_values` makes them.
        predictions: of these examples, if there are any.
        columns: `images`, `texts` and `rows`, lists of length `k` or, where
            there is nothing of a kind, empty; `features`, the names of the
            values in a row, and `hidden`, how many more there are.
    """

    name: str
    ids: np.ndarray
    labels: np.ndarray
    predictions: Predictions | None
    columns: dict[str, Any]


def read(
    data: Any,
    name: str,
    ids: np.ndarray,
    predictions: Any = None,
    render: str = "auto",
    feature_names: Any = None,
) -> Shown:
    """Reads the examples with these ids.

    The data is read once, and once more before if its images are grey.

    Args:
        data: as `model.fit` takes it.
        name: what errors call it.
        ids: `[k]`, at least one and each once.
        predictions: of the model, in reading order or by id.
        render: how to show the examples; see `View.of`.
        feature_names: names of the values in a row.

    Raises:
        ImportError: if there are images and Pillow is not installed.
        ValueError: if no example has one of the ids, if predictions, names or
            shapes do not fit, or if images have colours out of range.
    """
    examples = open_examples(data, name)
    outputs = None
    if predictions is not None:
        outputs = predictions_for(
            predictions, ids, examples.carries_ids, f"{name}_predictions"
        )
    view = View.of(examples.first(1), render, name, feature_names)
    labels, columns = _columns(examples, ids, view)
    features = {"features": view.features, "hidden": view.num_hidden}
    return Shown(
        name,
        ids,
        labels,
        None if outputs is None else Predictions.of(outputs, labels),
        columns | features,
    )


def _columns(
    examples: Examples, ids: np.ndarray, view: View
) -> tuple[np.ndarray, dict[str, Any]]:
    """Labels `[k]`, and images, texts and rows, in the order of `ids [k]`."""
    wanted = select(examples, ids)
    view = view.with_limits(wanted.batches(_BATCH))
    found: list[Any] = []
    labels: list[Any] = []
    columns: dict[str, list] = {"images": [], "texts": [], "rows": []}
    for batch in wanted.batches(_BATCH):
        found += batch.ids.tolist()
        labels.append(tf.nest.map_structure(np.asarray, batch.y))
        shown: tuple[list, list, list] = view.render(batch)
        for column, part in zip(columns.values(), shown, strict=True):
            column += part
    order = _order(found, ids, examples.name)
    joined = tf.nest.map_structure(
        lambda *parts: np.concatenate(parts), *labels
    )
    ordered = {
        kind: [column[at] for at in order] if column else []
        for kind, column in columns.items()
    }
    return label_values(joined)[order], ordered


def _order(found: list[Any], ids: np.ndarray, name: str) -> list[int]:
    """Where each of `ids` was found, first."""
    place = {one: at for at, one in reversed(list(enumerate(found)))}
    missing = [one for one in ids.tolist() if one not in place]
    if missing:
        raise ValueError(
            f"The results name the id {missing[0]!r}, which no example of "
            f"`{name}` has. Pass the data that the scores were made with, or "
            "other data with the same ids."
        )
    return [place[one] for one in ids.tolist()]
