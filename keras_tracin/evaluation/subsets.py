"""Retrains on random subsets, for the linear datamodeling score.

The outputs of every training are one file, named by a digest of all that they
depend on: an interrupted call continues where it stopped, a call with more
subsets or seeds trains only what is missing, and every method is compared with
the same outputs.

Synopsis:

    def fit(train, seed):              # trains from the start
        keras.utils.set_random_seed(seed)
        model = build()
        model.fit(*train, epochs=10, verbose=0)
        return model

    retrained = kt.evaluation.retrain_on_subsets(
        fit, train, test, "retrained/digits", num_subsets=50, seeds=(0, 1)
    )
    kt.evaluation.lds(scores, retrained).mean
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.evaluation.rank_correlation import rank_correlations
from keras_tracin.evaluation.retraining import (
    Data,
    query_values,
    read_whole,
)
from keras_tracin.evaluation.trainings import (
    Trainings,
    check_seeds,
    progress,
)
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss
from keras_tracin.models.descriptions import describe

_COMPARED = 32  # queries on which custom losses are compared


@dataclasses.dataclass(frozen=True)
class Retrained:
    """Outputs of models that were trained on subsets.

    Attributes:
        masks: booleans `[s, n]`: True for the examples of a subset.
        each: value of each query (its loss by default; lower is better) after
            each of the `r` trainings on a subset, `[s, r, m]`.
        train_ids: ids of the training examples, `[n]`.
        query_ids: ids of the queries, `[m]`.
    """

    masks: np.ndarray
    each: np.ndarray
    train_ids: np.ndarray
    query_ids: np.ndarray

    @property
    def outputs(self) -> np.ndarray:
        """Means over the trainings on a subset, `[s, m]`."""
        return self.each.mean(axis=1)

    @property
    def ceiling(self) -> float:
        """Estimate of the highest LDS that scores can reach.

        Trainings vary by chance. If ρ is the mean rank correlation between the
        outputs of two trainings, the correlation of means over r trainings with
        their expectation is about √(rρ / (1 + (r - 1)ρ)) (Spearman and Brown).
        NaN for a single training.
        """
        count = self.each.shape[1]
        pairs = itertools.combinations(range(count), 2)
        correlations = [
            rank_correlations(self.each[:, i], self.each[:, j])
            for i, j in pairs
        ]
        if not correlations:
            return float("nan")
        rho = max(0.0, float(np.nanmean(correlations)))
        return float(np.sqrt(count * rho / (1 + (count - 1) * rho)))


def retrain_on_subsets(
    fit: Callable[[Any, int], keras.Model],
    train: Any,
    test: Any,
    directory: str | os.PathLike,
    *,
    num_subsets: int = 50,
    share: float = 0.5,
    seeds: Sequence[int] = (0, 1),
    seed: int = 0,
    config: Any = None,
    query_loss: Any = "loss",
    loss: Any = None,
    verbose: int = 1,
) -> Retrained:
    """Trains on random subsets, and measures the queries after each.

    Args:
        fit: function that takes `(x, y[, sample_weight])` of a subset, as
            arrays in reading order, and a seed for everything random in
            training; returns a trained model.
        train: training examples that are scored. They are read into memory.
        test: the queries.
        directory: directory for outputs; several processes may share it.
        num_subsets: number of subsets; a later call with more subsets trains
            only the additional ones.
        share: share of the examples in each subset.
        seeds: seeds of the trainings on each subset. The mean of
            several trainings depends less on chance, which no score predicts.
        seed: seed of the choice of subsets.
        config: JSON-compatible description of what `fit` does. Outputs in the
            directory are reused only if their `config` was equal; `fit` itself
            cannot be compared.
        query_loss: quantity to measure on the queries, as in `TracIn`.
        loss: loss to use in place of the compiled one.
        verbose: 0 for silence; otherwise a progress bar counts the trainings.

    Returns:
        A `Retrained`.

    Raises:
        ValueError: if `share` leaves no example or no choice, there are fewer
            than two subsets or no seeds, a value is NaN or infinite, or a
            file is damaged.
        TypeError: if `config` is not JSON-compatible.
    """
    data, queries = read_whole(train, "train"), read_whole(test, "test")
    masks = _masks(len(data.ids), num_subsets, share, seed)
    seeds = check_seeds(seeds)
    key = {
        "train": data.digest,
        "test": queries.digest,
        "config": config,
        "query_loss": query_loss if isinstance(query_loss, str) else "own",
    }
    if loss is not None:
        key["loss"] = describe(loss)
    if not isinstance(query_loss, str):
        key["query_loss"] = describe(query_loss)
    custom = _CustomMeasure.create(query_loss, loss, queries)

    def measure(model: keras.Model) -> dict[str, np.ndarray]:
        values = query_values(model, test, query_loss, loss)
        comparison = {} if custom is None else custom.record(model)
        return {"values": values, **comparison}

    trainings = Trainings(fit, data, directory, key, measure)
    values_by_training = np.empty([len(masks), len(seeds), len(queries.ids)])
    bar = progress(len(masks) * len(seeds), verbose)
    for i, mask in enumerate(masks):
        for j, training_seed in enumerate(seeds):
            stored = trainings(mask, training_seed, f"subset {i}")
            if custom is not None:
                custom.check(trainings.path(mask, training_seed), stored)
            values_by_training[i, j] = stored["values"]
            bar()
    return Retrained(masks, values_by_training, data.ids, queries.ids)


@dataclasses.dataclass(frozen=True)
class _CustomMeasure:
    """A custom function that measures queries.

    It has no configuration to compare. Instead, its values for outputs of a
    trained model are saved, and compared when the file is read.

    Attributes:
        measure: `(y, y_pred, sample_weight) -> [n]`.
        queries: queries to compare on.
    """

    measure: PerExampleLoss
    queries: Any

    @classmethod
    def create(
        cls, query_loss: Any, loss: Any, queries: Data
    ) -> _CustomMeasure | None:
        """The custom function in use; None for strings and Keras losses."""
        function = loss if query_loss == "loss" else query_loss
        if not callable(function) or isinstance(function, keras.losses.Loss):
            return None
        sample = queries.rows(slice(_COMPARED))
        return cls(per_example_loss(None, function), sample)

    def record(self, model: keras.Model) -> dict[str, np.ndarray]:
        """Arrays to save for later comparison."""
        outputs = model(self.queries[0], training=False)
        if tf.nest.is_nested(outputs):
            return {}
        array = tf.cast(outputs, tf.float32).numpy()
        return {"outputs": array, "measured": self._apply(array)}

    def check(self, path: Path, stored: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError if another function made the values of a file."""
        if "outputs" not in stored:
            return
        received, expected = (
            self._apply(stored["outputs"]),
            stored["measured"],
        )
        limit = 1e-4 * np.abs(expected).max(initial=0.0)
        if not np.allclose(received, expected, 0.0, limit, equal_nan=True):
            at = int(np.abs(received - expected).argmax())
            raise ValueError(
                f"{path} was measured by another `query_loss` or `loss` than "
                f"this one: received {received[at]:.6g}, expected "
                f"{expected[at]:.6g} for one of the queries. Choose another "
                "directory, or say in `config` what it depends on."
            )

    def _apply(self, outputs: np.ndarray) -> np.ndarray:
        y, *weight = self.queries[1:]
        values = self.measure(
            y, tf.constant(outputs), weight[0] if weight else None
        )
        return np.asarray(values, np.float64)


def _masks(count: int, subsets: int, share: float, seed: int) -> np.ndarray:
    """Masks `[subsets, count]`; each depends on its own number only."""
    size = round(share * count)
    if not 0 < share < 1 or not 0 < size < count:
        raise ValueError(
            "`share` should be above 0 and below 1, so that subsets of "
            f"{count} examples differ. Received: {share!r}."
        )
    if subsets < 2:
        raise ValueError(
            "A correlation needs two subsets or more. Received: "
            f"num_subsets={subsets!r}."
        )
    masks = np.zeros([subsets, count], bool)
    for i, mask in enumerate(masks):
        members = np.random.default_rng([seed, i]).permutation(count)[:size]
        mask[members] = True
    return masks
