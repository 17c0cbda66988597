"""Whether scores tell what happens: training again without an example.

Synopsis:

    def fit(train):                    # trains from the start
        model = build()
        model.fit(*train, epochs=10, verbose=0)
        return model

    report = kt.evaluation.leave_one_out(scores, train, test, fit, ids=[3, 8])
    report.pearson, report.spearman    # [num_test]
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import scipy.stats

from keras_tracin.evaluation.training_again import (
    check_same,
    query_values,
    read_whole,
)
from keras_tracin.results import Attribution


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """What scores predicted beside what happened.

    Attributes:
        train_ids: `[k]`, the examples left out, one at a time.
        query_ids: `[m]`.
        predicted: `[m, k]`, the scores. Those of influence functions, divided
            by the number of training examples, predict `actual` itself.
        actual: `[m, k]`, the query's loss without the example minus its loss
            with it: positive for a proponent.
    """

    train_ids: np.ndarray
    query_ids: np.ndarray
    predicted: np.ndarray
    actual: np.ndarray

    @property
    def pearson(self) -> np.ndarray:
        """Correlation over the examples left out, for each query `[m]`.

        NaN where a side does not vary.
        """
        return self._each(scipy.stats.pearsonr)

    @property
    def spearman(self) -> np.ndarray:
        """Rank correlation, for each query `[m]`; NaN as `pearson`."""
        return self._each(scipy.stats.spearmanr)

    def _each(self, correlation: Callable) -> np.ndarray:
        with warnings.catch_warnings():
            # A constant side has no correlation, and NaN says so.
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
    """Trains again without each of some examples and compares with scores.

    Training must be the same each time but for the example (initial weights,
    order, seeds), or reach the same minimum; otherwise chance moves the losses
    more than any example does.

    Args:
        scores: of these queries (the rows) and training examples.
        train: what the scores were made with. It is read into memory.
        test: the queries.
        fit: takes `(x, y[, sample_weight])` of the examples that are left,
            as arrays in reading order, and returns a trained model. It is
            called once with all of them and once for each that is left out.
        ids: the examples to leave out; by default the `count` of largest
            summed size of scores.
        count: how many, if `ids` is None.
        loss: used in place of the models' compiled loss.
        query_loss: what to measure on the queries, as in `TracIn`.

    Returns:
        A `LeaveOneOut`.

    Raises:
        ValueError: if fewer than two examples are to be left out, if an id is
            unknown, or if the scores are not of these examples and queries.
    """
    data, asked = read_whole(train, "train"), read_whole(test, "test")
    check_same("training examples", scores.train_ids, data.ids)
    check_same("queries", scores.query_ids, asked.ids)
    columns = _columns(scores, ids, count)

    def values(keep: np.ndarray) -> np.ndarray:
        return query_values(fit(data.rows(keep)), test, query_loss, loss)

    everything = np.ones(len(data.ids), bool)
    whole = values(everything)
    changes = []
    for column in columns:
        keep = everything.copy()
        keep[column] = False
        changes.append(values(keep) - whole)
    return LeaveOneOut(
        train_ids=scores.train_ids[columns],
        query_ids=asked.ids,
        predicted=scores.scores[:, columns],
        actual=np.stack(changes, axis=1),
    )


def _columns(
    scores: Attribution, ids: Iterable[Any] | None, count: int
) -> list[int]:
    """Where the examples to leave out are among the scores' columns."""
    if ids is None:
        size = np.abs(scores.scores).sum(axis=0)
        columns = np.argsort(-size, kind="stable")[:count].tolist()
    else:
        known = {one: at for at, one in enumerate(scores.train_ids.tolist())}
        wanted = np.asarray(list(ids)).tolist()
        unknown = [one for one in wanted if one not in known]
        if unknown:
            raise ValueError(
                "`ids` should be ids of training examples. Received ids that "
                f"are not among them: {unknown[:5]}."
            )
        columns = [known[one] for one in wanted]
    if len(columns) < 2:
        raise ValueError(
            "A correlation needs two examples or more to leave out. Received: "
            f"{len(columns)}."
        )
    return columns
