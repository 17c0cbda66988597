"""The examples that a page shows, looked up by their ids.

Synopsis:

    shown = read(train, "train", ids, render="auto")
    shown.ids, shown.labels, shown.columns    # all in the order of `ids`
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples
from keras_tracin.data.examples import open_examples, select
from keras_tracin.data.frames import column_names
from keras_tracin.data.labels import label_values
from keras_tracin.data.lookup import locate
from keras_tracin.report.labels import Predictions, predictions_for
from keras_tracin.report.rendering import View
from keras_tracin.report.tokens import TokenView

_BATCH = 256  # examples read at a time
NO_LABEL = "no label"  # what stands for one


@dataclasses.dataclass(frozen=True)
class Shown:
    """Some examples of one data set.

    Attributes:
        name: name of the data set.
        ids: ids `[k]`.
        labels: labels `[k]`, as `label_values` returns them.
        predictions: predictions for these examples, or None.
        columns: lists `images`, `texts` and `rows`, of length `k`, or empty if
            the inputs have none of that kind; `tokens` where texts are made of
            these; `features`, the names of the values in a row; and `hidden`,
            the number of values not shown.
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
    read_labels: Callable[[Any], np.ndarray] = label_values,
    tokens: TokenView | None = None,
) -> Shown:
    """Reads the examples with these ids.

    The data is read once, or twice if its images are grey.

    Args:
        data: data in a form that `model.fit` takes.
        name: name of the data in errors.
        ids: distinct ids `[k]`, at least one.
        predictions: predictions of the model, in reading order or by id.
        render: kind of rendering; see `View.for_batch`.
        feature_names: names of the values in a row; by default the columns of
            a table.
        read_labels: makes a value of the labels of each example.
        tokens: renders texts of tokens, in place of anything else.

    Raises:
        ImportError: if there are images and Pillow is not installed.
        ValueError: if no example has one of the ids, if predictions, names or
            shapes do not fit, or if images have colours out of range.
    """
    examples = open_examples(data, name, labels=False)
    examples.pad(lambda short, padded: True)  # only shown
    outputs = None
    if predictions is not None:
        outputs = predictions_for(
            predictions, ids, examples.carries_ids, f"{name}_predictions"
        )
    view: View | TokenView = tokens or View.for_batch(
        examples.first(1), render, name, feature_names
    )
    if feature_names is None and isinstance(view, View):
        is_tuple = isinstance(data, tuple) and len(data) > 0
        view = view.named(column_names(data[0] if is_tuple else data))
    y, columns = _columns(examples, ids, view)
    labels = read_labels(y)
    features = {"features": view.features, "hidden": view.num_hidden}
    return Shown(
        name,
        ids,
        labels,
        None if outputs is None else Predictions.from_outputs(outputs, labels),
        columns | features,
    )


def _labels_of(batch: Batch, view: View | TokenView) -> Any:
    """The labels of a batch, or what stands for them."""
    # Labels of each token are tokens, which the text has, or as long.
    of_tokens = isinstance(view, TokenView) and np.ndim(batch.y) > 1
    if batch.y is None or of_tokens:
        return np.full(len(batch), NO_LABEL)
    return tf.nest.map_structure(np.asarray, batch.y)


def _columns(
    examples: Examples, ids: np.ndarray, view: View | TokenView
) -> tuple[Any, dict[str, Any]]:
    """Labels, and images, texts and rows, in the order of `ids [k]`."""
    selection = select(examples, ids)
    view = view.with_limits(selection.batches(_BATCH))
    read_ids: list[Any] = []
    labels: list[Any] = []
    columns: dict[str, list] = {"images": [], "texts": [], "rows": []}
    for batch in selection.batches(_BATCH):
        read_ids += batch.ids.tolist()
        labels.append(_labels_of(batch, view))
        for kind, part in view.render(batch).items():
            columns.setdefault(kind, []).extend(part)
    order = locate(read_ids, ids, examples.name)
    all_labels = tf.nest.map_structure(
        lambda *parts: np.concatenate(parts), *labels
    )
    ordered = {
        kind: [column[i] for i in order] if column else []
        for kind, column in columns.items()
    }
    return tf.nest.map_structure(lambda y: y[order], all_labels), ordered
