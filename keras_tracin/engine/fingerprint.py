"""Tells what parts on disk were computed with, by numbers of a few examples.

A configuration does not say what a lambda computes, what a closure holds or
what an attribute of a layer has become. Numbers do: for 32 training examples,
spread over the classes, the model's outputs, the losses, the lengths of the
gradients and their products with a few random directions, and the same for the
measure of queries. They are kept beside the parts; a call that goes on computes
them again, which takes as long as scoring 32 examples at one checkpoint, and
compares.

Synopsis:

    batch = spread_examples(examples)
    numbers = measure(model, loss, functions, batch) | identify(batch)
    agree(directory / FILE_NAME, numbers, tolerance(model))
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.data.batches import Batch, Examples, content_digest, join
from keras_tracin.engine.measures import BATCH, Numbers
from keras_tracin.storage.arrays import load_arrays
from keras_tracin.storage.sharing import write_first_arrays

FILE_NAME = "fingerprint.npz"
COUNT = 32

_SEARCHED = 512  # examples at the beginning of a stream to choose from
_SEARCHED_BYTES = 64 * 2**20

# In this order: what comes first explains what comes after it.
_MEANINGS = {
    "outputs": (
        "the model has other outputs",
        "Its layers, their activations or attributes are not what they were",
    ),
    "features": (
        "the model represents examples otherwise",
        "Its layers, their activations or attributes are not what they were",
    ),
    "losses": (
        "the loss gives other values",
        "It is another function, or what it refers to has changed",
    ),
    "query losses": (
        "what queries are measured by gives other values",
        "`query_loss` is another function, or what it refers to has changed",
    ),
    "norms": (
        "gradients have other lengths, though outputs and losses are the same",
        "A layer passes on another gradient (`tf.stop_gradient`, a custom "
        "one), or other variables are trainable",
    ),
    "products": (
        "gradients have other directions, though outputs and losses are the "
        "same",
        "A layer passes on another gradient, or other variables are trainable",
    ),
    "query norms": (
        "queries have gradients of other lengths",
        "`query_loss` is another function, or what it refers to has changed",
    ),
    "query products": (
        "queries have gradients of other directions",
        "`query_loss` is another function, or what it refers to has changed",
    ),
}
_OTHER = (
    "the method computes other numbers",
    "Something that it was given computes otherwise than it did",
)
_DATA = ("ids", "content", "query ids", "query content")
# Their noise is that of what they are computed from.
_NOISE = {"losses": "outputs", "query losses": "outputs"}


class Mismatch(ValueError):
    """Numbers differ from those that are kept."""


def spread_examples(examples: Examples, count: int = COUNT) -> Batch:
    """Some training examples, spread over the classes.

    Of arrays any, of a stream some of the first: the same ones at each call,
    if the data is the same.

    Args:
        examples: the examples to choose from.
        count: number of examples to choose, where there are as many.
    """
    in_memory = examples.bytes_read_per_example == 0
    batches: list[Batch] = []
    for batch in examples.batches(_SEARCHED if in_memory else BATCH):
        batches.append(batch)
        if in_memory:
            continue
        read = sum(map(len, batches))
        size = sum(known.nbytes for known in batches)
        if read >= _SEARCHED or (read >= count and size >= _SEARCHED_BYTES):
            break
    rows = spread_rows(
        sum(map(len, batches)),
        classes_of([known.y for known in batches]),
        count,
    )
    selected, start = [], 0
    for batch in batches:
        inside = rows[(rows >= start) & (rows < start + len(batch))] - start
        start += len(batch)
        if len(inside):
            selected.append(batch.take(inside))
    return join(selected)


def spread_rows(
    size: int, classes: np.ndarray | None, count: int = COUNT
) -> np.ndarray:
    """Increasing positions below `size`, spread over classes if there are any.

    Args:
        size: positions to choose from.
        classes: the class at each position, `[size]`.
        count: number of positions to choose, where there are as many.
    """
    if classes is None:
        return _even_steps(size, count)
    members = [np.flatnonzero(classes == name) for name in np.unique(classes)]
    members = [
        members[at] for at in np.unique(_even_steps(len(members), count))
    ]
    quotas = np.zeros(len(members), int)
    sizes = np.array([len(rows) for rows in members])
    # One of each class, then a second one, until there are enough.
    while quotas.sum() < min(count, sizes.sum()):
        wanting = np.flatnonzero(quotas < sizes)
        quotas[wanting[: count - quotas.sum()]] += 1
    positions = [
        rows[_even_steps(len(rows), quota)]
        for rows, quota in zip(members, quotas.tolist(), strict=True)
    ]
    return np.unique(np.concatenate(positions))


def examples_with(examples: Examples, ids: np.ndarray) -> Batch:
    """The examples of these ids, in their order.

    Raises:
        Mismatch: if one of them is not there.
    """
    known: dict[Any, Batch] = {}
    names = ids.tolist()
    for batch in examples.batches(_SEARCHED):
        for row in np.flatnonzero(np.isin(batch.ids, ids)):
            known.setdefault(batch.ids[row].item(), batch.take(np.array([row])))
        if len(known) == len(set(names)):
            break
    missing = [name for name in names if name not in known]
    if missing:
        raise Mismatch(
            f"Training examples of ids {missing[:5]} are needed to compare the "
            "method with the one that files were made with. Received training "
            "examples without them: give the method those that it had."
        )
    return join([known[name] for name in names])


def identify(batch: Batch) -> Numbers:
    """Numbers that identify examples: "ids", and a digest as "content"."""
    return {"ids": batch.ids, "content": np.array(content_digest([batch]))}


def tolerance(model: keras.Model) -> float:
    """Largest difference of numbers, as a share of the largest of them."""
    halves = ("float16", "bfloat16")
    half = any(
        layer.compute_dtype in halves for layer in model._flatten_layers()
    )
    return 1e-2 if half else 1e-4


def load_numbers(path: Path) -> Numbers:
    """The numbers in a file.

    Raises:
        ValueError: if it cannot be read.
    """
    return load_arrays(
        path,
        "It says what the other files there were made of. Delete "
        f"{path.parent} and call again.",
    )


def agree(
    path: Path,
    received: Numbers,
    share: float,
    remedy: str = "Choose another directory",
) -> None:
    """Compares numbers with those that are kept, or keeps them first.

    Args:
        path: the file that holds them.
        received: the numbers of this call.
        share: largest difference, as a share of the largest number of each
            array.
        remedy: advice for the case that they differ, a sentence.

    Raises:
        Mismatch: if they differ, saying in what.
        ValueError: if the file cannot be read.
    """
    if not path.is_file():
        write_first_arrays(path, received)
    expected, directory = load_numbers(path), path.parent
    for name in _DATA:
        if not np.array_equal(
            received.get(name, np.zeros(0)), expected.get(name, np.zeros(0))
        ):
            what = "made from other training examples"
            if name.startswith("query"):
                what = "made from other queries"
            raise Mismatch(
                f"What is in {directory} was {what}, or from these in another "
                "order: of those that are compared, "
                f"received {name} {_format(received.get(name))}, expected "
                f"{_format(expected.get(name))}. {remedy}."
            )
    names = [*_MEANINGS, *sorted({**received, **expected})]
    for name in names:
        if name in _DATA or (name not in received and name not in expected):
            continue
        new, old = received.get(name), expected.get(name)
        if new is None or old is None or new.shape != old.shape:
            at, size = None, 0.0
        else:
            limit = share * _largest(old)
            if name in _NOISE and _NOISE[name] in expected:
                limit += 1e-2 * share * _largest(expected[_NOISE[name]])
            at, size = _first_apart(new, old, limit)
            if at is None:
                continue
        raise Mismatch(_explained(directory, name, new, old, at, size, remedy))


def _explained(directory, name, new, old, at, size, remedy) -> str:
    what, reason = _MEANINGS.get(name, _OTHER)
    if at is None:
        numbers = (
            f"received {'none' if new is None else f'shape {new.shape}'}, "
            f"expected {'none' if old is None else f'shape {old.shape}'}"
        )
    else:
        numbers = (
            f"received {new[at]:.6g}, expected {old[at]:.6g} for one of "
            f"{len(old)} examples that are compared"
        )
    return (
        f"What is in {directory} was made by something else: {what} "
        f"({name}: {numbers}). {reason}. {remedy}."
    )


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)].astype(np.float64))
    return float(finite.max(initial=0.0))


def _first_apart(
    new: np.ndarray, old: np.ndarray, limit: float
) -> tuple[tuple[int, ...] | None, float]:
    """The place where two arrays differ most, if by more than the limit."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(new.astype(np.float64) - old.astype(np.float64))
    same = (new == old) | (np.isnan(new) & np.isnan(old))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    if not apart.size or apart.max() <= limit:
        return None, 0.0
    at = np.unravel_index(int(apart.argmax()), apart.shape)
    return tuple(map(int, at)), float(apart[at])


def _format(array: np.ndarray | None) -> str:
    if array is None:
        return "none"
    return str(array) if array.ndim == 0 else f"{array[:3].tolist()}..."


def _even_steps(size: int, count: int) -> np.ndarray:
    """`count` positions from the first to the last of `size`, or all."""
    if size <= count:
        return np.arange(size)
    return np.linspace(0, size - 1, count).astype(int)


def classes_of(labels: Sequence[Any]) -> np.ndarray | None:
    """The class of each example `[n]`, if labels are of that kind.

    Args:
        labels: the labels of each batch.
    """
    leaves = [tf.nest.flatten(y) for y in labels]
    if any(len(own) != 1 or own[0] is None for own in leaves):
        return None
    whole = np.concatenate([np.asarray(leaf) for (leaf,) in leaves])
    if whole.ndim == 2 and whole.shape[1] > 1:
        return whole.argmax(axis=1) if whole.dtype.kind in "fiub" else None
    if whole.size != len(whole) or whole.dtype.kind not in "fiubOSU":
        return None
    whole = whole.reshape(-1)
    return whole if 2 * len(np.unique(whole)) <= len(whole) else None
