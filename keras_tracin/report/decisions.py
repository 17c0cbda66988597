"""Training data as a reviewer of the page decided: `apply_decisions`.

Synopsis:

    x, y = apply_decisions((x_train, y_train), "report-decisions.csv")
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.examples import open_examples
from keras_tracin.data.filtering import NewLabels, filtered
from keras_tracin.data.kinds import as_text
from keras_tracin.data.labels import label_values
from keras_tracin.data.lookup import look_up
from keras_tracin.report.examples import NO_LABEL
from keras_tracin.report.suspects import NONE_HOLDS, label_sets

_READ = 1024  # examples read at a time
_COLUMNS = ("id", "given_label", "decision", "new_label")
_DECISIONS = ("keep", "relabel", "remove", "unsure")


def apply_decisions(
    data: Any, decisions: str | os.PathLike, *, class_names: Any = None
) -> Any:
    """The training data without what was removed, and with the new labels.

    Examples that were kept, are unsure, or were not reviewed stay as they are.
    Decisions are those of `data`: each has the label that the example had,
    and a file is refused whose labels are others. So it cannot be applied
    twice, nor to another data set.

    Example:
    ```python
    x, y = kt.report.apply_decisions((x, y), "report-decisions.csv")
    model.fit(x, y, epochs=10)
    ```

    Args:
        data: the training examples with their labels, as `model.fit` takes
            them and as they were when the page was written; sample weights
            stay with their examples. It is not changed.
        decisions: the file that **Export CSV** of the page saved.
        class_names: where examples have several labels, their names, if
            `write_html` was given them.

    Returns:
        The examples in the order of `data`: arrays for arrays, for pandas
        objects pandas objects, and for a dataset a dataset with ids, which may
        be shuffled.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if the file is no table of decisions, if it decides on an
            example that is not in `data`, or that has another label there, or
            if a new label is none that `data` could have.
    """
    made = _read(Path(decisions))
    examples = open_examples(_batched(data), "data", labels=False)
    all_ids = np.concatenate([b.ids for b in examples.batches(_READ)])
    if not made:
        return filtered(data, all_ids)
    ids = _typed([row.id for row in made], all_ids)
    batch = look_up(examples, ids)
    values = _new_labels(batch.y, made, ids, class_names)
    labels = None
    if len(values):
        is_relabelled = np.array([row.decision == "relabel" for row in made])
        labels = NewLabels(ids[is_relabelled], values)
    is_removed = np.array([row.decision == "remove" for row in made])
    kept = all_ids[~np.isin(all_ids, ids[is_removed])]
    if not len(kept):
        raise ValueError(
            "Decisions should leave an example. Received: all "
            f"{len(all_ids):,} are to be removed."
        )
    return filtered(data, kept, labels=labels)


def _batched(data: Any) -> Any:
    """The data, in batches also where they are made later."""
    if isinstance(data, DatasetWithIds):
        identifier, _ = data.paired.element_spec
        if identifier.shape.rank == 0:
            return data.batch(_READ)
    return data


@dataclasses.dataclass(frozen=True)
class _Decision:
    """A row of the table, all in words."""

    id: str
    given_label: str
    decision: str
    new_label: str


def _read(path: Path) -> list[_Decision]:
    """The rows of the table.

    Raises:
        ValueError: if it is no such table, or has an example twice.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file)
        columns = table.fieldnames or []
        if not set(_COLUMNS) <= set(columns):
            raise ValueError(
                f"{path} should be a table with the columns "
                f"{', '.join(_COLUMNS)}, as Export CSV saves it. Received: "
                f"{', '.join(columns) or 'no columns'}."
            )
        rows = list(table)
    made = [_Decision(*(row[name] or "" for name in _COLUMNS)) for row in rows]
    seen = set()
    for row in made:
        if row.decision not in _DECISIONS:
            raise ValueError(
                f"A decision in {path} should be one of "
                f"{', '.join(_DECISIONS)}. Received: {row.decision!r} for the "
                f"id {row.id!r}."
            )
        if row.id in seen:
            raise ValueError(
                f"{path} should decide once on each example. Received: the id "
                f"{row.id!r} twice. Delete one of the rows."
            )
        seen.add(row.id)
    return made


def _typed(ids: Sequence[str], all_ids: np.ndarray) -> np.ndarray:
    """Ids as the data has them.

    Raises:
        ValueError: if the data has none of this name.
    """
    known = {str(id_): place for place, id_ in enumerate(all_ids.tolist())}
    missing = [id_ for id_ in ids if id_ not in known]
    if missing:
        raise ValueError(
            f"The decisions name the id {missing[0]!r}, which no example of "
            "`data` has. Pass the data that the report was written for, with "
            "the same ids."
        )
    return all_ids[[known[id_] for id_ in ids]]


def _new_labels(
    y: Any, made: Sequence[_Decision], ids: np.ndarray, class_names: Any
) -> np.ndarray:
    """The labels `[m, ...]` of the examples to relabel, as the data has them.

    Args:
        y: labels of the decided examples, or None.
        made: the decisions.
        ids: ids of these examples.
        class_names: names of labels, or None.

    Raises:
        ValueError: if they have other labels than were reviewed, or if a new
            label is none of theirs.
    """
    forms = _forms(np.full(len(ids), NO_LABEL) if y is None else y, class_names)
    given = [row.given_label for row in made]
    fitting = [form for form in forms if form.words() == given]
    if not fitting:
        words = forms[0].words()
        at = next(i for i, word in enumerate(words) if word != given[i])
        raise ValueError(
            "The labels of `data` should be those that were reviewed. "
            f"Received: the id {ids[at].item()!r} with the label "
            f"{words[at]!r} and not {given[at]!r}. Pass the labels as they "
            "were; decisions are applied once."
        )
    new = [row.new_label for row in made if row.decision == "relabel"]
    if not new:
        return np.zeros(0)
    for form in fitting[:-1]:
        with contextlib.suppress(ValueError):
            return form.labels(new)
    return fitting[-1].labels(new)


class _Form:
    """How the page puts labels in words, and back.

    Args:
        y: labels of the decided examples, of which each has one value.
    """

    def __init__(self, y: Any):
        self.y = y

    def words(self) -> list[str]:
        """The labels in words, `[k]`."""
        return [as_text(value) for value in label_values(self.y).tolist()]

    def labels(self, words: Sequence[str]) -> np.ndarray:
        """Labels `[m, ...]` of the words, as the data has them.

        Raises:
            ValueError: if a word is none.
        """
        leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(self.y)]
        first = leaves[0]
        is_one = len(leaves) == 1 and first[:1].size == 1
        if not is_one or self.words()[0] == NO_LABEL:
            raise ValueError(
                "A new label should be a class, a set of classes, a number or "
                f"a word. Received: {words[0]!r}, where an example of `data` "
                f"has {self.words()[0]!r}. Leave these rows out of the file."
            )
        shape = (len(words), *first.shape[1:])
        if first.dtype.kind == "U":
            return np.array(words).reshape(shape)
        if first.dtype.kind in "SO":
            is_bytes = isinstance(first.reshape(-1)[0], bytes)
            values = [word.encode() if is_bytes else word for word in words]
            return np.array(values, "S" if is_bytes else object).reshape(shape)
        numbers = np.array([_number(word) for word in words])
        with np.errstate(over="ignore"):
            typed = numbers.astype(first.dtype)
        is_near = np.isclose(typed.astype(np.float64), numbers, rtol=1e-2)
        if not is_near.all():
            word = words[int((~is_near).argmax())]
            raise _not_a_label(word, f"a number of type {first.dtype}")
        return typed.reshape(shape)


class _Classes(_Form):
    """Labels `[k, classes]` of which one holds, or that are probabilities."""

    def words(self) -> list[str]:
        return [str(value) for value in self.y.argmax(axis=1).tolist()]

    def labels(self, words: Sequence[str]) -> np.ndarray:
        count = self.y.shape[1]
        for word in words:
            if not (word.isdecimal() and int(word) < count):
                raise _not_a_label(word, f"a class from 0 to {count - 1}")
        return np.eye(count, dtype=self.y.dtype)[[int(w) for w in words]]


class _Sets(_Form):
    """Labels `[k, labels]` of which several may hold.

    Args:
        y: the labels.
        names: their names.
    """

    def __init__(self, y: np.ndarray, names: Sequence[str]):
        super().__init__(y)
        self.names = names

    def words(self) -> list[str]:
        return label_sets(self.y, self.names).tolist()

    def labels(self, words: Sequence[str]) -> np.ndarray:
        places = {name: place for place, name in enumerate(self.names)}
        values = np.zeros((len(words), len(self.names)), self.y.dtype)
        for row, word in enumerate(words):
            held = [] if word == NONE_HOLDS else word.split(",")
            for name in held:
                if name.strip() not in places:
                    known = ", ".join(self.names[:10])
                    raise _not_a_label(
                        word, f"some of {known}, or {NONE_HOLDS}"
                    )
                values[row, places[name.strip()]] = 1
        return values


def _forms(y: Any, class_names: Any) -> list[_Form]:
    """The forms that these labels may have, the likeliest first."""
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(y)]
    leaf = leaves[0]
    is_row = leaf.ndim == 2 and leaf.shape[1] > 1
    if len(leaves) > 1 or not is_row or leaf.dtype.kind not in "biuf":
        return [_Form(y)]
    forms: list[_Form] = []
    values = leaf.astype(np.float64)
    if (values >= 0).all() and np.allclose(values.sum(axis=1), 1, atol=1e-3):
        forms.append(_Classes(leaf))
    if ((values == 0) | (values == 1)).all():
        count = leaf.shape[1]
        names = list(range(count) if class_names is None else class_names)
        if len(names) == count:
            forms.append(_Sets(leaf, [str(name) for name in names]))
    return [*forms, _Form(y)]


def _number(word: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(float(word)):
            return float(word)
    raise _not_a_label(word, "a number")


def _not_a_label(word: str, expected: str) -> ValueError:
    return ValueError(
        f"A new label should be {expected}, as the labels of `data` are. "
        f"Received: {word!r}. Correct it in the file."
    )
