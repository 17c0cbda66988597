"""Findings about the data, which are read twice."""

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

# A check of a batch returns the rows at fault.
BatchCheck = Callable[[Batch], list[int]]
# Id and digest of each example, in reading order.
Digests = list[tuple[Any, bytes]]


def reading_findings(
    examples: Examples,
    model: keras.Model,
    loss: PerExampleLoss | None,
    max_examples: int | None,
) -> Iterator[Finding]:
    """Findings about the order, ids, labels and values of the examples.

    Args:
        examples: the opened data.
        model: the built model.
        loss: its per-example loss; None if it has none, so that labels are
            not checked.
        max_examples: number of examples to read; None for all.
    """
    name = examples.name
    checks: dict[tuple[str, str], BatchCheck] = {
        ("error", "NaN or infinite values"): _not_finite,
        ("warning", "Negative sample weights"): _negative_weights,
    }
    if loss is not None:
        checks["error", "Labels outside of the classes"] = _check_labels(
            model, loss
        )
    first, faults = _read(examples, max_examples, checks)
    second, _ = _read(examples, max_examples, {})
    yield _order_finding(examples, first, second)
    for (severity, fault), ids in faults.items():
        yield Finding(
            severity,
            name,
            f"{fault} in examples with ids {_list_ids(ids)}. Correct them, or "
            "leave these examples out.",
        )
    counts = Counter(identifier for identifier, _ in first)
    repeated = [identifier for identifier, n in counts.items() if n > 1]
    if repeated:
        yield Finding(
            "warning",
            name,
            f"Ids that occur more than once: {_list_ids(repeated)}. Give each "
            "example its own, unless these are repeats.",
        )


def _order_finding(
    examples: Examples, first: Digests, second: Digests
) -> Finding:
    """Compares the order and content of two readings."""
    message = f"Read {len(first):,} examples twice"
    if first == second:
        return Finding("note", examples.name, f"{message}, in the same order.")
    if not examples.carries_ids:
        return Finding(
            "error",
            examples.name,
            f"{message}: their order or content changes each time. Attach ids "
            "by `kt.with_ids` before `shuffle`, or take out what changes.",
        )
    before = dict(first)
    changed = [i for i, digest in second if before.get(i, digest) != digest]
    if changed:
        return Finding(
            "warning",
            examples.name,
            f"{message}: the content of examples with ids {_list_ids(changed)} "
            "changes each time. Take random augmentation out.",
        )
    return Finding(
        "note",
        examples.name,
        f"{message}, in different orders; their ids tell them apart.",
    )


def _read(
    examples: Examples,
    max_examples: int | None,
    checks: Mapping[tuple[str, str], BatchCheck],
) -> tuple[Digests, dict[tuple[str, str], list[Any]]]:
    """Reads once: digests of the examples, and ids at fault by check."""
    digests: Digests = []
    faults: dict[tuple[str, str], list[Any]] = {}
    size = _BATCH if max_examples is None else min(_BATCH, max_examples)
    batches = examples.batches(size)
    enough = itertools.takewhile(
        lambda _: max_examples is None or len(digests) < max_examples, batches
    )
    for batch in enough:
        digests += zip(batch.ids.tolist(), _digests(batch), strict=True)
        for fault, check in checks.items():
            rows = check(batch)
            if rows:
                faults.setdefault(fault, []).extend(batch.ids[rows].tolist())
    return digests, faults


def _digests(batch: Batch) -> list[bytes]:
    leaves = [np.asarray(leaf) for leaf in tf.nest.flatten(batch.data)]

    def digest(row: int) -> bytes:
        hasher = hashlib.blake2b(digest_size=16)
        for leaf in leaves:
            value = leaf[row]
            text = leaf.dtype == object  # the bytes of objects are pointers
            hasher.update(repr(value).encode() if text else value.tobytes())
        return hasher.digest()

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


def _check_labels(model: keras.Model, loss: PerExampleLoss) -> BatchCheck:
    """A check by the loss, which is given zeros in place of predictions."""

    def invalid_rows(batch: Batch) -> list[int]:
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

    return invalid_rows


def _list_ids(ids: list[Any]) -> str:
    more = len(ids) - _MOST_SHOWN
    return f"{ids[:_MOST_SHOWN]}" + f" and {more:,} more" * (more > 0)
