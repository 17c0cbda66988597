"""What a preflight says of the data: it reads them twice."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.check.report import Finding
from keras_tracin.data.batches import Batch, Examples
from keras_tracin.engine.diagnosis import broken_rows
from keras_tracin.losses.invalid_labels import LabelsOutsideClasses
from keras_tracin.losses.per_example import PerExampleLoss

_BATCH = 256
_MOST_SHOWN = 10

Complaint = Callable[[Batch], list[int]]  # the rows that something is said of
Seen = list[tuple[Any, bytes]]  # the id and a digest of each example, in order


def reading_findings(
    examples: Examples,
    model: keras.Model,
    loss: PerExampleLoss,
    most: int | None,
) -> Iterator[Finding]:
    """Order, ids, labels and numbers of the examples.

    Args:
        examples: the opened data.
        model: the built model that they are for.
        loss: its per-example loss.
        most: how many examples to read; None for all.
    """
    name = examples.name
    complaints: dict[tuple[str, str], Complaint] = {
        ("error", "NaN or infinite values"): _not_finite,
        ("error", "Labels outside of the classes"): _unfit_labels(model, loss),
        ("warning", "Negative sample weights"): _negative_weights,
    }
    seen, found = _read(examples, most, complaints)
    again, _ = _read(examples, most, {})
    yield _order(examples, seen, again)
    for (severity, what), ids in found.items():
        yield Finding(
            severity,
            name,
            f"{what} in examples with ids {_some(ids)}. Correct them, or leave "
            "these examples out.",
        )
    counts = Counter(identifier for identifier, _ in seen)
    repeated = [identifier for identifier, n in counts.items() if n > 1]
    if repeated:
        yield Finding(
            "warning",
            name,
            f"Ids that occur more than once: {_some(repeated)}. Scores name an "
            "example by its id: give each its own, unless these are repeats.",
        )


def _order(examples: Examples, seen: Seen, again: Seen) -> Finding:
    """What two readings in a row say of the order."""
    read = f"Read {len(seen):,} examples twice"
    if seen == again:
        return Finding("note", examples.name, f"{read}, in the same order.")
    if not examples.carries_ids:
        return Finding(
            "error",
            examples.name,
            f"{read}: their order or content changes each time, so they cannot "
            "be told apart by position. Attach ids with `kt.with_ids` before "
            "`shuffle`, or take out what changes.",
        )
    before = dict(seen)
    changed = [i for i, digest in again if before.get(i, digest) != digest]
    if changed:
        return Finding(
            "warning",
            examples.name,
            f"{read}: the content of examples with ids {_some(changed)} "
            "changes each time, and so will their scores. Take random "
            "augmentation out before attribution.",
        )
    return Finding(
        "note",
        examples.name,
        f"{read}, in different orders; their ids tell them apart.",
    )


def _read(
    examples: Examples,
    most: int | None,
    complaints: Mapping[tuple[str, str], Complaint],
) -> tuple[Seen, dict[tuple[str, str], list[Any]]]:
    """One pass: what was seen, and the ids that complaints are about."""
    seen: Seen = []
    found: dict[tuple[str, str], list[Any]] = {}
    batches = examples.batches(_BATCH if most is None else min(_BATCH, most))
    enough = itertools.takewhile(
        lambda _: most is None or len(seen) < most, batches
    )
    for batch in enough:
        seen += zip(batch.ids.tolist(), _digests(batch), strict=True)
        for what, complaint in complaints.items():
            rows = complaint(batch)
            if rows:
                found.setdefault(what, []).extend(batch.ids[rows].tolist())
    return seen, found


def _digests(batch: Batch) -> list[bytes]:
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(batch.data)]

    def digest(row: int) -> bytes:
        found = hashlib.blake2b(digest_size=16)
        for leaf in leaves:
            value = leaf[row]
            text = leaf.dtype == object  # whose bytes are pointers
            found.update(repr(value).encode() if text else value.tobytes())
        return found.digest()

    return [digest(row) for row in range(len(batch))]


def _not_finite(batch: Batch) -> list[int]:
    return sorted({row for rows in broken_rows(batch).values() for row in rows})


def _negative_weights(batch: Batch) -> list[int]:
    negative = np.zeros(len(batch), bool)
    for leaf in tf.nest.flatten(batch.sample_weight):
        if leaf is not None:
            values = np.asarray(leaf).reshape(len(batch), -1)
            negative |= (values < 0).any(axis=1)
    return np.flatnonzero(negative).tolist()


def _unfit_labels(model: keras.Model, loss: PerExampleLoss) -> Complaint:
    """Asks the loss, with predictions made up in the place of the model's."""

    def unfit(batch: Batch) -> list[int]:
        spec = tf.nest.map_structure(
            lambda leaf: keras.KerasTensor(
                (len(batch), *leaf.shape[1:]), tf.as_dtype(leaf.dtype).name
            ),
            batch.x,
        )
        outputs = model.compute_output_spec(spec)
        y_pred = tf.nest.map_structure(
            lambda leaf: tf.zeros([d or 1 for d in leaf.shape], leaf.dtype),
            outputs,
        )
        try:
            loss(batch.y, y_pred, batch.sample_weight)
        except LabelsOutsideClasses as error:
            return error.rows
        return []

    return unfit


def _some(ids: list[Any]) -> str:
    more = len(ids) - _MOST_SHOWN
    return f"{ids[:_MOST_SHOWN]}" + f" and {more:,} more" * (more > 0)
