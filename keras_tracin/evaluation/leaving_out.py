"""Compares scores with leave-one-out retraining.

Synopsis:

    def fit(train):                    # trains from the start
        model = build()
        model.fit(*train, epochs=10, verbose=0)
        return model

    result = kt.evaluation.leave_one_out(scores, train, test, fit, ids=[3, 8])
    result.pearson, result.spearman    # [num_test]
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import scipy

from keras_tracin.evaluation.retraining import (
    check_same,
    query_values,
    read_whole,
)
from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """Scores, and real changes of losses without examples.

    Attributes:
        train_ids: ids of the examples that were left out one at a time, `[k]`.
        query_ids: ids of the queries, `[m]`.
        predicted: scores `[m, k]`. Scores of influence functions, divided by
            the number of training examples, estimate `actual` itself.
        actual: loss of the query without the example minus its loss with it,
            `[m, k]`: positive for a proponent.
    """

    train_ids: np.ndarray
    query_ids: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    @property
    def pearson(self) -> np.ndarray:
        """Pearson correlations over the examples, `[m]`.

        NaN if scores or changes do not vary.
        """
        return self._correlate(scipy.stats.pearsonr)

    @property
    def spearman(self) -> np.ndarray:
        """Rank correlations over the examples, `[m]`; NaN like `pearson`."""
        return self._correlate(scipy.stats.spearmanr)

    def _correlate(self, correlation: Callable) -> np.ndarray:
        with warnings.catch_warnings():
            # Constant values have no correlation: NaN.
            warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
            return np.array(
                [
                    correlation(*pair).statistic
                    for pair in zip(self.predicted, self.actual, strict=True)
                ]
            )


def leave_one_out(
    scores: Attribution,
    train: Any,
    test: Any,
    fit: Callable[[Any], keras.Model],
    *,
    ids: Iterable[Any] | None = None,
    count: int = 20,
    loss: Any = None,
    query_loss: Any = "loss",
) -> LeaveOneOut:
    """Retrains without single examples and compares the losses with scores.

    Trainings must differ in nothing but the example (same initial weights,
    order and seeds), or reach the same minimum; otherwise chance changes the
    losses more than any example does.

    Args:
        scores: scores `[m, n]` of the queries and training examples below.
        train: training examples that were scored. They are read into memory.
        test: the queries.
        fit: function that takes `(x, y[, sample_weight])` of the remaining
            examples, as arrays in reading order, and returns a trained model.
            It is called once with all examples and once without each of them.
        ids: ids of the examples to leave out; by default the `count` examples
            with the largest sum of absolute scores.
        count: number of examples to leave out if `ids` is None.
        loss: loss to use in place of the compiled one.
        query_loss: quantity to measure on the queries, as in `TracIn`.

    Returns:
        A `LeaveOneOut`.

    Raises:
        ValueError: if fewer than two examples are to be left out, if an id is
            unknown, or if the scores are not of these examples and queries.
    """
    data, queries = read_whole(train, "train"), read_whole(test, "test")
    check_same("training examples", scores.train_ids, data.ids)
    check_same("queries", scores.query_ids, queries.ids)
    columns = _columns(scores, ids, count)

    def values(keep: np.ndarray) -> np.ndarray:
        return query_values(fit(data.rows(keep)), test, query_loss, loss)

    everything = np.ones(len(data.ids), bool)
    baseline = values(everything)
    changes = []
    for column in columns:
        keep = everything.copy()
        keep[column] = False
        changes.append(values(keep) - baseline)
    return LeaveOneOut(
        train_ids=scores.train_ids[columns],
        query_ids=queries.ids,
        predicted=scores.scores[:, columns],
        actual=np.stack(changes, axis=1),
    )


def _columns(
    scores: Attribution, ids: Iterable[Any] | None, count: int
) -> list[int]:
    """Columns of the scores of the examples to leave out."""
    if ids is None:
        size = np.abs(scores.scores).sum(axis=0)
        columns = np.argsort(-size, kind="stable")[:count].tolist()
    else:
        column_of = {id_: i for i, id_ in enumerate(scores.train_ids.tolist())}
        id_list = np.asarray(list(ids)).tolist()
        unknown = [id_ for id_ in id_list if id_ not in column_of]
        if unknown:
            raise ValueError(
                "`ids` should be ids of training examples. Received ids that "
                f"are not among them: {unknown[:5]}."
            )
        columns = [column_of[id_] for id_ in id_list]
    if len(columns) < 2:
        raise ValueError(
            "A correlation needs two examples or more to leave out. Received: "
            f"{len(columns)}."
        )
    return columns
