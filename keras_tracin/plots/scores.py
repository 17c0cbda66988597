"""Scores to draw: of results, of arrays, of several of them by name.

Synopsis:

    scores = example_scores(tracin.self_influence(), "scores")
    scores.values, scores.flags(is_mislabeled, "is_mislabeled")    # [n], [n]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_tracin.labels import LabelIssues
from keras_tracin.plots.columns import column
from keras_tracin.results import Attribution, Ranking, SelfInfluence, TopK


@dataclasses.dataclass(frozen=True)
class Scores:
    """Scores of training examples, and the ids of these, if they are known.

    Attributes:
        values: scores `[n]`.
        ids: ids `[n]`, or None for an array of scores.
        repeats: number of times that the examples follow one another, one for
            each query.
        is_in_order: whether they are in the order of the data.
    """

    values: np.ndarray
    ids: np.ndarray | None = None
    repeats: int = 1
    is_in_order: bool = True

    def flags(self, flags: Any, name: str) -> np.ndarray:
        """Booleans `[n]` beside the scores, as `beside`."""
        return self.beside(flags, name).astype(bool)

    def beside(self, values: Any, name: str) -> np.ndarray:
        """Values `[n]` of the examples, in the order of the scores.

        Args:
            values: values in reading order, or by id.
            name: name of the argument, for errors.

        Raises:
            ValueError: if they do not fit the scores, or if they are in
                reading order and the scores are ranked.
        """
        if isinstance(values, Mapping):
            return self._by_id(values, name)
        if not self.is_in_order:
            raise ValueError(
                f"`{name}` should be a dict by id, since these scores are "
                "ranked, and no longer in the order of the data. Received: "
                f"{type(values).__name__}. Pass a dict, "
                f"`dict(enumerate({name}))` where ids are positions; or the "
                "scores as the method returned them, before `ranking()`."
            )
        array = column(name, values, len(self.values) // self.repeats)
        return np.tile(array, self.repeats)

    def _by_id(self, values: Mapping, name: str) -> np.ndarray:
        if self.ids is None:
            raise ValueError(
                f"`{name}` should be an array of length {len(self.values)}, "
                "since the scores are an array, without ids. Received: a "
                f"{type(values).__name__}. Or pass the result that the method "
                "returned, which has ids."
            )
        missing = [id_ for id_ in self.ids.tolist() if id_ not in values]
        if missing:
            raise ValueError(
                f"`{name}` should hold every id that has a score. It lacks "
                f"{missing[:5]}."
            )
        return np.array([values[id_] for id_ in self.ids.tolist()])


def example_scores(result: Any, name: str) -> Scores:
    """A score for each example, of a result that has no queries or one.

    Args:
        result: a `SelfInfluence`, `LabelIssues`, an `Attribution` of one
            query, or an array.
        name: name of the argument, for errors.

    Raises:
        TypeError: if it is a result of several queries.
        ValueError: if it is an array of another rank.
    """
    if isinstance(result, SelfInfluence):
        values = np.asarray(result.scores, np.float64)
        return Scores(
            values, result.ids, is_in_order=not _is_ranked(result.ids, values)
        )
    if isinstance(result, LabelIssues):
        values = np.asarray(result.scores, np.float64)
        return Scores(values, result.ids, is_in_order=False)
    if isinstance(result, Attribution) and len(result.query_ids) == 1:
        values = np.asarray(result.scores[0], np.float64)
        return Scores(values, result.train_ids)
    if isinstance(result, Attribution):
        raise TypeError(
            f"`{name}` should have one score for each example. Received: "
            f"{result!r}. Pass one query's scores, `scores.scores[0]`, or "
            "their sum, `scores.scores.sum(axis=0)`."
        )
    if isinstance(result, TopK | Ranking):
        raise TypeError(
            f"`{name}` should have a score for every example. Received: a "
            f"{type(result).__name__}, which holds only the strongest. Pass "
            "the result of `self_influence()`, or a row of `influence(...)`."
        )
    return Scores(_vector(result, name))


def all_scores(result: Any, name: str) -> dict[str, Scores]:
    """All scores of a result, by what they are.

    Args:
        result: any result, or an array `[n]`.
        name: name of the argument, for errors.

    Raises:
        ValueError: if it is an array of another rank.
    """
    if isinstance(result, TopK):
        return {
            "proponents": _pool(result.proponents),
            "opponents": _pool(result.opponents),
        }
    if isinstance(result, Ranking):
        return {"all": _pool(result)}
    if isinstance(result, Attribution):
        count = len(result.query_ids)
        ids = np.tile(result.train_ids, count)
        values = np.asarray(result.scores, np.float64).reshape(-1)
        return {"all": Scores(values, ids, count)}
    return {"all": example_scores(result, name)}


def named_scores(scores: Any, name: str) -> dict[str, Scores]:
    """Scores of examples by name, of a mapping or of a single result.

    Args:
        scores: results or arrays by name; or one of them alone.
        name: name of the argument, for errors.

    Raises:
        TypeError: as `example_scores`.
        ValueError: as `example_scores`.
    """
    if not isinstance(scores, Mapping):
        is_own = isinstance(scores, SelfInfluence)
        title = "self-influence" if is_own else "scores"
        return {title: example_scores(scores, name)}
    return {
        str(title): example_scores(result, f"{name}[{title!r}]")
        for title, result in scores.items()
    }


def check_finite(values: np.ndarray, name: str) -> None:
    """Raises ValueError where there is no score, or one is not finite."""
    broken = np.count_nonzero(~np.isfinite(values))
    if not len(values) or broken:
        raise ValueError(
            f"`{name}` should be finite numbers [n]. Received: shape "
            f"{values.shape}, {broken} of them NaN or infinite."
        )


def _pool(ranking: Ranking) -> Scores:
    values = np.asarray(ranking.scores, np.float64).reshape(-1)
    ids = np.asarray(ranking.ids).reshape(-1)
    return Scores(values, ids, is_in_order=False)


def _vector(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(
            f"`{name}` should be finite numbers [n]. Received: shape "
            f"{array.shape}."
        )
    return array


def _is_ranked(ids: np.ndarray, values: np.ndarray) -> bool:
    """Whether scores stand in their own order, and not in that of ids."""
    falls = len(values) > 1 and bool((np.diff(values) <= 0).all())
    ascends = bool((ids[1:] >= ids[:-1]).all())
    return falls and not ascends
