"""Retrains with growing shares of the examples dropped, or kept.

Scores that are good for anything beat a random choice of as many examples, and
those that need more than a forward pass should beat the loss as well: random
subsets are always beside them, and the loss is one of the scores to pass.

Synopsis:

    def fit(train, seed):              # trains from the start
        keras.utils.set_random_seed(seed)
        model = build()
        model.fit(*train, epochs=10, verbose=0)
        return model

    loss = kt.training_dynamics(model, train, run, verbose=0).mean_loss
    curves = kt.evaluation.removal_curve(
        fit, train, test, {"loss": loss}, "retrained/a", shares=(0.1, 0.2)
    )
    curves.mean("loss"), curves.difference("loss")   # beside random
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_tracin.evaluation.curves import RANDOM, RetrainingCurves
from keras_tracin.evaluation.orders import read_orders
from keras_tracin.evaluation.retraining import (
    query_values,
    read_whole,
    shares_correct,
)
from keras_tracin.evaluation.trainings import (
    Fit,
    Trainings,
    check_seeds,
    progress,
)
from keras_tracin.models.descriptions import describe

Metric = str | Callable[[keras.Model, Any], float]


def removal_curve(
    fit: Fit,
    train: Any,
    test: Any,
    scores: Mapping[str, Any],
    directory: str | os.PathLike,
    *,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    seeds: Sequence[int] = (0, 1, 2),
    draws: int = 1,
    metric: Metric = "accuracy",
    loss: Any = None,
    config: Any = None,
    verbose: int = 1,
) -> RetrainingCurves:
    """Trains without the examples that have the highest scores.

    With scores of how harmful examples are, what is measured should rise, or
    fall late.

    Args:
        fit: function that takes `(x, y[, sample_weight])` of a subset, as
            arrays in reading order, and a seed for everything random in
            training; returns a trained model.
        train: training examples that are scored. They are read into memory.
        test: examples to measure the models on.
        scores: by name, scores of each example, the highest removed first: an
            array `[n]` in reading order, a dict by id, a Series of pandas by
            its index, a `SelfInfluence`, or `LabelIssues`.
        directory: directory for outcomes, each of which is kept: an
            interrupted call goes on where it stopped. Several processes, and
            calls with other scores, may share it.
        shares: shares of the examples to remove.
        seeds: seeds of the trainings.
        draws: number of random subsets for each share and seed, to compare
            with.
        metric: "accuracy", the share of labels predicted; "loss"; or a
            function `(model, test) -> float`.
        loss: loss to use in place of the compiled one.
        config: JSON-compatible description of what `fit` and `metric` do.
            Outcomes in the directory are reused only if their `config` was
            equal; functions cannot be compared.
        verbose: 0 for silence; otherwise a progress bar counts the trainings.

    Returns:
        A `RetrainingCurves`.

    Raises:
        ValueError: if scores are not of these examples, shares leave nothing
            out or nothing in, there are no seeds or draws, a value is NaN or
            infinite, or a file is damaged.
        TypeError: if scores are of several queries, or `config` is not
            JSON-compatible.
    """
    return _Curves(
        "removed", fit, train, test, directory, metric, loss, config
    ).run(scores, shares, seeds, draws, verbose)


def selection_curve(
    fit: Fit,
    train: Any,
    test: Any,
    scores: Mapping[str, Any],
    directory: str | os.PathLike,
    *,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.5),
    seeds: Sequence[int] = (0, 1, 2),
    draws: int = 1,
    metric: Metric = "accuracy",
    loss: Any = None,
    config: Any = None,
    verbose: int = 1,
) -> RetrainingCurves:
    """Trains on the examples that have the highest scores alone.

    `fit` may start from trained weights, to see what is worth fine-tuning on.

    Args:
        fit: as of `removal_curve`.
        train: training examples that are scored. They are read into memory.
        test: examples to measure the models on.
        scores: by name, scores of each example, the highest kept first: an
            array `[n]` in reading order, a dict by id, a Series of pandas by
            its index, a `SelfInfluence`, or a `Selection` of as many as the
            largest share.
        directory: directory for outcomes, as of `removal_curve`.
        shares: shares of the examples to keep.
        seeds: seeds of the trainings.
        draws: number of random subsets for each share and seed, to compare
            with.
        metric: as of `removal_curve`.
        loss: loss to use in place of the compiled one.
        config: as of `removal_curve`.
        verbose: 0 for silence; otherwise a progress bar counts the trainings.

    Returns:
        A `RetrainingCurves`.

    Raises:
        ValueError: as `removal_curve`, and for `LabelIssues`, which begin with
            what is to be dropped.
        TypeError: as `removal_curve`.
    """
    return _Curves(
        "kept", fit, train, test, directory, metric, loss, config
    ).run(scores, shares, seeds, draws, verbose)


class _Curves:
    """Trains on the masks of both curves, and collects the metric."""

    def __init__(self, kind, fit, train, test, directory, metric, loss, config):
        self._kind, self._test, self._loss = kind, test, loss
        self._data = read_whole(train, "train")
        queries = read_whole(test, "test")
        if metric not in ("accuracy", "loss") and not callable(metric):
            raise ValueError(
                "`metric` should be 'accuracy', 'loss' or a function of a "
                f"model and the test examples. Received: {metric!r}."
            )
        self._metric = metric
        described = metric if isinstance(metric, str) else describe(metric)
        self._name = getattr(metric, "__name__", str(metric))
        key = {
            "train": self._data.digest,
            "test": queries.digest,
            "config": config,
            "metric": described,
        }
        if loss is not None:
            key["loss"] = describe(loss)
        self._trainings = Trainings(
            fit, self._data, directory, key, self._measure
        )

    def _measure(self, model: keras.Model) -> dict[str, np.ndarray]:
        if self._metric == "accuracy":
            values = shares_correct(model, self._test, self._loss)
        elif self._metric == "loss":
            values = query_values(model, self._test, "loss", self._loss)
        else:
            values = np.asarray(self._metric(model, self._test), np.float64)
        return {"values": values}

    def run(
        self,
        scores: Mapping[str, Any],
        shares: Sequence[float],
        seeds: Sequence[int],
        draws: int,
        verbose: int,
    ) -> RetrainingCurves:
        """Trains on what is missing."""
        numbers = check_seeds(seeds)
        counts = self._counts(shares)
        if draws < 1:
            raise ValueError(
                f"`draws` should be 1 or more. Received: {draws!r}."
            )
        orders = read_orders(scores, self._data.ids, max(counts), self._kind)
        total = len(self._data.ids)
        trainings = len(numbers) * (1 + len(counts) * (len(orders) + draws))
        bar = progress(trainings, verbose)

        def value(mask: np.ndarray, seed: int, what: str) -> float:
            stored = self._trainings(mask, seed, what)
            bar()
            return float(stored["values"].mean())

        def curve(order: np.ndarray, seed: int, name: str) -> list[float]:
            points = []
            for count in counts:
                mask = np.zeros(total, bool)
                mask[order[:count]] = True
                what = f"what '{name}' leaves"
                keep = mask if self._kind == "kept" else ~mask
                points.append(value(keep, seed, what))
            return points

        everything, random = [], []
        values: dict[str, list] = {name: [] for name in orders}
        for seed in numbers:
            everyone = np.ones(total, bool)
            everything.append(value(everyone, seed, "all examples"))
            for name, order in orders.items():
                values[name].append(curve(order, seed, name))
            generators = [
                np.random.default_rng([seed, d]) for d in range(draws)
            ]
            random.append(
                [curve(g.permutation(total), seed, RANDOM) for g in generators]
            )
        each = np.transpose(random, (2, 0, 1))  # [s, r, d]
        by_name = {name: np.transpose(v) for name, v in values.items()}
        return RetrainingCurves(
            kind=self._kind,
            metric=self._name,
            shares=np.asarray(shares, np.float64),
            values={**by_name, RANDOM: each.mean(axis=2)},
            random_each=each,
            everything=np.array(everything),
        )

    def _counts(self, shares: Sequence[float]) -> list[int]:
        total = len(self._data.ids)
        counts = [round(share * total) for share in shares]
        if not counts or not all(0 < count < total for count in counts):
            raise ValueError(
                "`shares` should be above 0 and below 1, so that some of "
                f"{total:,} examples are left out and some in. Received: "
                f"{list(shares)}."
            )
        return counts
