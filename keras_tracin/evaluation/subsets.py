"""Training again on random subsets: what scores are asked to predict.

Each outcome is one file, under the digest of all that it depends on: a call
that was interrupted goes on where it was, another one with more subsets or more
seeds trains only what is missing, and every method is held against the same
outcomes.

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
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.evaluation.rank_correlation import rank_correlations
from keras_tracin.evaluation.training_again import (
    Data,
    query_values,
    read_whole,
)
from keras_tracin.losses.per_example import PerExampleLoss, per_example_loss
from keras_tracin.models.descriptions import describe
from keras_tracin.storage.arrays import load_arrays, save_arrays

_TRIED = 32  # queries that a function of the user's own is compared on


@dataclasses.dataclass(frozen=True)
class Retrained:
    """What came of training on subsets.

    Attributes:
        masks: `[s, n]` booleans, which examples were trained on.
        each: `[s, r, m]`, each query's value (its loss, as a rule; lower is
            better) after each of the `r` trainings on a subset.
        train_ids: `[n]`.
        query_ids: `[m]`.
    """

    masks: np.ndarray
    each: np.ndarray
    train_ids: np.ndarray
    query_ids: np.ndarray

    @property
    def outputs(self) -> np.ndarray:
        """The means over the trainings on a subset, `[s, m]`."""
        return self.each.mean(axis=1)

    @property
    def ceiling(self) -> float:
        """About the highest LDS there can be, as trainings vary by chance.

        With ρ the mean rank correlation between one training's outcomes and
        another's, that of means of r with what they are means of is about
        √(rρ / (1 + (r - 1)ρ)) (Spearman and Brown). NaN for one training.
        """
        count = self.each.shape[1]
        pairs = itertools.combinations(range(count), 2)
        found = [
            rank_correlations(self.each[:, one], self.each[:, other])
            for one, other in pairs
        ]
        if not found:
            return float("nan")
        rho = max(0.0, float(np.nanmean(found)))
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
        fit: takes `(x, y[, sample_weight])` of the examples of a subset, as
            arrays in reading order, and a seed for everything random in
            training; returns a trained model.
        train: what the scores are made with. It is read into memory.
        test: the queries.
        directory: where outcomes are kept; several processes may share it.
        num_subsets: how many subsets; a call with more adds to those of one
            with fewer.
        share: of the examples, in each subset.
        seeds: of the trainings on each subset. The mean of several is less
            subject to chance, which no score predicts.
        seed: that of the subsets.
        config: anything JSON can say of what `fit` does. Outcomes are taken
            from the directory only if they were made with the same; `fit`
            itself cannot be compared.
        query_loss: what to measure on the queries, as in `TracIn`.
        loss: used in place of the models' compiled loss.
        verbose: 0 for silence; else a bar counts the trainings.

    Returns:
        A `Retrained`.

    Raises:
        ValueError: if `share` leaves no example or no choice, there are fewer
            than two subsets or no seeds, a value is NaN or infinite, or a
            file is damaged.
        TypeError: if `config` is nothing that JSON can say.
    """
    whole, asked = read_whole(train, "train"), read_whole(test, "test")
    masks = _masks(len(whole.ids), num_subsets, share, seed)
    seeds = _checked(seeds)
    key = {
        "train": whole.digest,
        "test": asked.digest,
        "config": config,
        "query_loss": query_loss if isinstance(query_loss, str) else "own",
    }
    if loss is not None:
        key["loss"] = describe(loss)
    if not isinstance(query_loss, str):
        key["query_loss"] = describe(query_loss)
    own = _OwnMeasure.of(query_loss, loss, asked)
    bar = None
    if verbose:
        total = len(masks) * len(seeds)
        bar = keras.utils.Progbar(total, unit_name="training")
    each = np.empty([len(masks), len(seeds), len(asked.ids)])
    for at, mask in enumerate(masks):
        for run, one in enumerate(seeds):
            path = Path(directory, f"{_name({**key, 'seed': one}, mask)}.npz")
            if not path.is_file():
                model = fit(whole.rows(mask), one)
                values = query_values(model, test, query_loss, loss)
                _check_finite(values, at, one)
                seen = {} if own is None else own.noted(model)
                save_arrays(path, {"values": values, **seen}, unique=True)
            stored = _load(path)
            if own is not None:
                own.check(path, stored)
            each[at, run] = stored["values"]
            if bar is not None:
                bar.add(1)
    return Retrained(masks, each, whole.ids, asked.ids)


@dataclasses.dataclass(frozen=True)
class _OwnMeasure:
    """A function of the user's own that queries are measured by.

    It has no configuration to compare: what it says of the outputs of a
    trained model is kept beside the outcome.

    Attributes:
        measure: `(y, y_pred, sample_weight) -> [n]`.
        queries: those that it is tried on.
    """

    measure: PerExampleLoss
    queries: Any

    @classmethod
    def of(cls, query_loss: Any, loss: Any, asked: Data) -> _OwnMeasure | None:
        """The one there is, if it is a plain function."""
        function = loss if query_loss == "loss" else query_loss
        if not callable(function) or isinstance(function, keras.losses.Loss):
            return None
        queries = asked.rows(slice(_TRIED))
        return cls(per_example_loss(None, function), queries)

    def noted(self, model: keras.Model) -> dict[str, np.ndarray]:
        """What to keep beside an outcome."""
        outputs = model(self.queries[0], training=False)
        if tf.nest.is_nested(outputs):
            return {}
        found = tf.cast(outputs, tf.float32).numpy()
        return {"outputs": found, "measured": self._applied(found)}

    def check(self, path: Path, stored: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError if another one measured an outcome."""
        if "outputs" not in stored:
            return
        received, expected = (
            self._applied(stored["outputs"]),
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

    def _applied(self, outputs: np.ndarray) -> np.ndarray:
        y, *weight = self.queries[1:]
        values = self.measure(
            y, tf.constant(outputs), weight[0] if weight else None
        )
        return np.asarray(values, np.float64)


def _masks(count: int, subsets: int, share: float, seed: int) -> np.ndarray:
    """`[subsets, count]`; the first are the same, however many there are."""
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
    for at, mask in enumerate(masks):
        chosen = np.random.default_rng([seed, at]).permutation(count)[:size]
        mask[chosen] = True
    return masks


def _checked(seeds: Sequence[int]) -> list[int]:
    found = [int(one) for one in seeds]
    if not found or len(set(found)) < len(found):
        raise ValueError(
            "`seeds` should hold a seed, or several that differ. Received: "
            f"{list(seeds)}."
        )
    return found


def _name(key: dict[str, Any], mask: np.ndarray) -> str:
    """A digest of all that an outcome depends on."""
    text = json.dumps(key, sort_keys=True)
    found = hashlib.blake2b(text.encode(), digest_size=16)
    found.update(np.packbits(mask).tobytes())
    return found.hexdigest()


def _check_finite(values: np.ndarray, subset: int, seed: int) -> None:
    if not np.isfinite(values).all():
        raise ValueError(
            f"Training on subset {subset} with seed {seed} ended in values "
            "that are NaN or infinite. Train with a smaller learning rate."
        )


def _load(path: Path) -> dict[str, np.ndarray]:
    """What is kept of an outcome, "values" and others."""
    return load_arrays(
        path, "Delete it and call again: only this training is done anew."
    )
