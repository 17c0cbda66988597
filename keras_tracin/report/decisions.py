"""Training data as a reviewer of the page decided: `apply_decisions`.

Synopsis:

    x, y = apply_decisions((x_train, y_train), "report-decisions.csv")
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.examples import open_examples
from keras_tracin.data.filtering import NewLabels, filtered
from keras_tracin.data.lookup import look_up
from keras_tracin.report.examples import NO_LABEL
from keras_tracin.report.label_forms import label_forms

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
        try:
            columns, rows = table.fieldnames or [], list(table)
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(
                f"{path} should be a table in UTF-8, as Export CSV saves it. "
                f"Received: another file ({error}). Save it as CSV in UTF-8."
            ) from error
        if not set(_COLUMNS) <= set(columns):
            raise ValueError(
                f"{path} should be a table with the columns "
                f"{', '.join(_COLUMNS)}, as Export CSV saves it. Received: "
                f"{', '.join(columns) or 'no columns'}."
            )
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
    known = np.full(len(ids), NO_LABEL) if y is None else y
    forms = label_forms(known, class_names)
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
    found: list[np.ndarray] = []
    for form in fitting:
        try:
            found.append(form.labels(new))
        except ValueError:
            if form is fitting[-1] and not found:
                raise
    for row, word in enumerate(new):
        if any((other[row] != found[0][row]).any() for other in found[1:]):
            raise ValueError(
                f"A new label should be one thing. Received: {word!r}, which "
                "is a class and also a name in `class_names`. Pass these only "
                "where examples have several labels, and not numbers in "
                "another order."
            )
    return found[0]
