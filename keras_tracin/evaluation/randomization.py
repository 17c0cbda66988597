"""Compares scores with those of the same model with its weights shuffled.

Scores that stay the same do not explain the model, whatever else they are good
for: similarities of inputs stay exactly the same (Adebayo et al. 2018, for
saliency maps; Bareeva et al. 2024, for training examples).

Synopsis:

    def make(run):
        return kt.TracIn(model, train, run)

    result = kt.evaluation.model_randomization(make, model, test, run)
    result.mean                              # near 0: they depend on the model
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_tracin.evaluation.rank_correlation import (
    mean_correlation,
    rank_correlations,
)
from keras_tracin.evaluation.retraining import check_same
from keras_tracin.methods.attributor import Attributor
from keras_tracin.results import Attribution
from keras_tracin.runs import TrainingRun, changed_weights

# Of a run, or of None where a method takes none.
MakeMethod = Callable[[Any], Attributor]


@dataclasses.dataclass(frozen=True)
class ModelRandomization:
    """How far scores are those of a model with shuffled weights.

    Attributes:
        query_ids: ids of the queries, `[m]`.
        correlations: rank correlation over the training examples of a query's
            scores with those by the shuffled weights, `[m]`. Near 0 if they
            depend on what the model has learnt, 1 if they do not; NaN where
            all scores of a query are the same.
    """

    query_ids: np.ndarray
    correlations: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over queries, leaving out NaN; NaN if all are."""
        return mean_correlation(self.correlations)


def model_randomization(
    make: MakeMethod,
    model: keras.Model,
    test: Any,
    run: TrainingRun | None = None,
    *,
    scores: Attribution | None = None,
    seed: int = 0,
    verbose: int = 1,
) -> ModelRandomization:
    """Scores once more with the entries of each weight in random order.

    Each trainable variable keeps its values, and so its scale, in another
    order, which is the same at all checkpoints. The weights come back
    afterwards, and the files of the run are not touched.

    Args:
        make: function that takes a run and returns the method, made anew of
            that run: a method that was fitted to the weights cannot be used
            with others, and one of another run would not be shuffled at all.
        model: the trained model, which the method scores.
        test: the queries.
        run: the run that `make` takes; None if it takes the model's weights.
        scores: those of the method as it is, if they are known.
        seed: seed of the order.
        verbose: 0 for silence.

    Returns:
        A `ModelRandomization`.

    Raises:
        ValueError: if `scores` are of other queries or training examples, or
            if `make` returns the same method again, or one of a run that it
            was not given.
    """
    made = make(run)
    described = made.describe()
    if scores is None:
        scores = made.influence(test, verbose=verbose)
    with changed_weights(
        model, run, lambda model: _shuffle(model, seed)
    ) as other_run:
        remade = make(other_run)
        _check_made_anew(made, remade)
        if run is not None:
            _check_takes_run(described, remade.describe())
        shuffled = remade.influence(test, verbose=verbose)
    check_same("queries", scores.query_ids, shuffled.query_ids)
    check_same("training examples", scores.train_ids, shuffled.train_ids)
    correlations = rank_correlations(scores.scores.T, shuffled.scores.T)
    return ModelRandomization(scores.query_ids, correlations)


def _check_made_anew(made: Attributor, remade: Attributor) -> None:
    """Raises ValueError if a function returns the method it returned before."""
    if remade is made:
        raise ValueError(
            "The function should make the method anew, of the run that it is "
            "given: one that was made before keeps its own run, or what it was "
            f"fitted to. Received twice: {type(made).__name__}. Make it inside "
            "of the function, `lambda run: kt.TracIn(model, train, run)`."
        )


def _check_takes_run(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> None:
    """Raises ValueError if two descriptions have a checkpoint in common.

    Args:
        before: of the method of a run, as JSON.
        after: of that of the run with other weights.
    """
    known, again = set(_checkpoints(before)), set(_checkpoints(after))
    if known & again:
        raise ValueError(
            "The function should make the method of the run that it is given, "
            "whose weights are shuffled the second time. Received a method of "
            f"the same {len(known & again)} checkpoints as before: "
            "`lambda run: kt.TracIn(model, train, run)` takes its argument."
        )


def _checkpoints(description: Mapping[str, Any]) -> Iterator[str]:
    """Digests of the checkpoints that a description names, members' too."""
    for entry in description.get("checkpoints", ()):
        yield entry if isinstance(entry, str) else entry[0]  # with its rate
    for member in description.get("members", ()):
        yield from _checkpoints(member)


def _shuffle(model: keras.Model, seed: int) -> None:
    for number, variable in enumerate(model.trainable_variables):
        values = keras.ops.convert_to_numpy(variable)
        rng = np.random.default_rng([seed, number])
        variable.assign(rng.permutation(values.ravel()).reshape(values.shape))
