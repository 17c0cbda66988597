"""Selects which training examples to keep.

Synopsis:

    selection = kt.select_examples(tracin, 0.1, test=test, verbose=0)
    x, y = selection.of(train)
"""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import numpy as np

from keras_tracin.index import InfluenceIndex
from keras_tracin.methods.indexable import Indexable
from keras_tracin.selection.redundancy import Rows, pick
from keras_tracin.selection.selection import Selection
from keras_tracin.selection.sources import Source, open_source
from keras_tracin.selection.strategies import quotas

_BALANCES = ("equal", "proportional")


def select_examples(
    source: Any,
    budget: int | float,
    *,
    test: Any = None,
    strategy: str | None = None,
    tasks: Any = None,
    balance: str | None = None,
    labels: Any = None,
    redundancy: Any = None,
    max_cosine: float = 0.95,
    verbose: int = 1,
) -> Selection:
    """Selects the training examples that are worth keeping.

    What is worth keeping depends on what for: `test` holds examples of what
    the model is to be good at, and influence on them selects for that.
    Training dynamics know of no such thing: they tell hard examples from easy
    ones. Equal scores are taken in the order of ids.

    Example:
    ```python
    tracin = kt.TracIn(model, train, "runs/digits")
    selection = kt.select_examples(tracin, 0.1, test=queries)
    model.fit(*selection.of((x, y)))
    issues = kt.find_label_issues(model, train, "runs/digits")
    kept = kt.select_examples(issues, 0.8)  # without the most suspicious
    ```

    Args:
        source: what to select by: a method; an `Attribution`, the scores of
            one; a `TrainingDynamics`; a `SelfInfluence`; `LabelIssues`; or any
            scores, of which more is better: an array `[n]`, whose ids are
            positions, a dict by id, or a Series of pandas by its index.
        budget: how many to select; a float up to 1.0 is a share.
        test: the queries, where `source` is a method.
        strategy: what makes an example wanted. By influence "round_robin",
            where queries or tasks take turns, each with its best that is still
            there; "max", over the tasks, of the mean in each (Xia et al.
            2024); or "mean", over the queries. By dynamics "hard", the largest
            EL2N (Paul et al. 2021) or loss; "easy", the smallest; or
            "forgetting", most often forgotten (Toneva et al. 2019). By
            self-influence "hard" or "easy". By label issues "clean", the least
            suspicious. By any scores "highest". None takes the first of these
            where it is obvious, and of dynamics and self-influence it has to
            be said.
        tasks: the task that each query is of, `[m]`; without, each query is
            a task of its own.
        balance: None, or "equal": as many of each class, or all of one that
            has fewer; or "proportional" to their sizes.
        labels: the classes to balance, `[n]` in the order of the scores or a
            dict by id; by default those that dynamics and label issues know.
        redundancy: sketches whose cosines tell near-duplicates, of which only
            the most wanted is selected: an `InfluenceIndex`; a method that
            can be indexed, as `TracIn`; or an array `[n, d]` in the order of
            the scores, such as embeddings. None compares nothing.
        max_cosine: cosine above which two examples are near-duplicates.
        verbose: 0 for silence.

    Returns:
        A `Selection`, of fewer than `budget` examples if no more are left.

    Raises:
        TypeError: if `source` has no scores.
        ValueError: if arguments do not fit each other or the source, or a
            score is NaN.
    """
    opened = open_source(source, test, tasks, verbose)
    number = _number(budget, len(opened.ids))
    classes = limits = None
    if balance is not None:
        classes = _classes(opened, balance, labels)
        limits = quotas(classes, number, balance)
    elif labels is not None:
        raise ValueError(
            "`labels` are the classes to balance. Received them without "
            "`balance=`, 'equal' for example."
        )
    rows = None
    if redundancy is not None:
        if not -1 <= max_cosine <= 1:
            raise ValueError(
                "`max_cosine` should be a cosine, from -1 to 1. Received: "
                f"{max_cosine!r}."
            )
        rows = _rows_of(redundancy, opened)
    wanted = opened.wanted(strategy)
    picked = pick(
        wanted.positions(opened.ids),
        number,
        rows=rows,
        max_cosine=max_cosine,
        classes=classes,
        limits=limits,
    )
    chosen = picked.chosen
    if len(chosen) < number:
        warnings.warn(
            f"{len(chosen):,} examples were selected of the {number:,} asked "
            f"for: {len(picked.left_out):,} others are near-duplicates of "
            "them. For more, raise `max_cosine`.",
            stacklevel=2,
        )
    weights = np.ones(len(chosen))
    if classes is not None:
        weights = _weights(classes, chosen, balance)
    how = strategy or next(iter(opened.strategies))
    balanced = "" if balance is None else f", {balance} over classes"
    return Selection(
        ids=opened.ids[chosen],
        scores=wanted.scores[chosen],
        weights=weights,
        reasons=wanted.reasons[chosen],
        description=f"of {len(opened.ids):,} by '{how}'{balanced}",
        left_out_ids=opened.ids[picked.left_out],
        left_out_for=opened.ids[picked.near_to],
    )


def _number(budget: int | float, count: int) -> int:
    """The number of examples to select."""
    is_flag = isinstance(budget, bool | np.bool_)
    number = 0
    if isinstance(budget, float | np.floating) and 0 < budget <= 1:
        number = max(1, round(float(budget) * count))
    elif isinstance(budget, int | np.integer) and not is_flag:
        number = int(budget)
    if not 1 <= number <= count:
        raise ValueError(
            f"`budget` should be a number from 1 to {count:,}, the examples "
            "that have scores, or a share of them, a float above 0 and up to "
            f"1.0. Received: {budget!r}."
        )
    return number


def _classes(source: Source, balance: str, labels: Any) -> np.ndarray:
    """Class numbers `[n]`, from 0 without gaps."""
    if balance not in _BALANCES:
        raise ValueError(
            "`balance` should be None, 'equal' or 'proportional'. Received: "
            f"{balance!r}."
        )
    if labels is None:
        values = source.given_labels
        if values is None:
            raise ValueError(
                "`balance` needs to know the classes. Received neither "
                "`labels=` nor scores that know them. Pass `labels=`, a class "
                "for each example."
            )
    else:
        values = source.beside(labels, "labels")
        if values.ndim == 2 and values.shape[1] == 1:
            values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(
            "`labels` should be a class for each example. Received: shape "
            f"{values.shape}. Pass class indices, `y.argmax(axis=1)` of "
            "one-hot labels."
        )
    return np.unique(values, return_inverse=True)[1]


def _weights(
    classes: np.ndarray, chosen: np.ndarray, balance: str | None
) -> np.ndarray:
    """Weights `[k]` with which classes are balanced, of mean 1."""
    own = classes[chosen]
    counts = np.bincount(own, minlength=classes.max() + 1)
    shares = np.bincount(classes) / len(classes)
    if balance == "equal":
        shares = np.ones(len(shares))
    shares = np.where(counts > 0, shares, 0)
    weights = shares[own] / counts[own]
    return weights / weights.mean()


def _rows_of(redundancy: Any, source: Source) -> Rows:
    """Reads sketches of some examples by their positions."""
    if isinstance(redundancy, Indexable):
        with tempfile.TemporaryDirectory() as directory:
            index = InfluenceIndex.build(redundancy, directory, search="exact")
            sketches = _of_index(index, source)(np.arange(len(source.ids)))
        return sketches.__getitem__
    if isinstance(redundancy, InfluenceIndex):
        return _of_index(redundancy, source)
    array = source.beside(redundancy, "redundancy")
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise ValueError(
            "`redundancy` should be an InfluenceIndex, a method that can be "
            "indexed, or numbers `[n, d]` of each example. Received: shape "
            f"{array.shape} of {array.dtype}."
        )
    return array.__getitem__


def _of_index(index: InfluenceIndex, source: Source) -> Rows:
    def rows(positions: np.ndarray) -> np.ndarray:
        return index.rows(source.ids[positions])

    rows(np.arange(len(source.ids))[:1])
    return rows
