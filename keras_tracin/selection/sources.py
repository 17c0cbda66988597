"""Scores to select by, from whatever has them.

Synopsis:

    source = open_source(tracin, test, None, 1)      # scores are computed
    source.ids                                       # [n]
    source.wanted("max")                             # by a strategy
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_tracin.data.ids import check_unique
from keras_tracin.labels import LabelIssues, TrainingDynamics
from keras_tracin.results import Attribution, SelfInfluence
from keras_tracin.results.of_examples import read_scores
from keras_tracin.selection.strategies import (
    Wanted,
    by_score,
    by_task,
    by_turns,
    task_means,
)


@dataclasses.dataclass(frozen=True)
class Source:
    """Scores of examples, and what can be done with them.

    Attributes:
        ids: `[n]`.
        strategies: what makes examples wanted, by name. The first is the
            default where `has_default`.
        has_default: whether there is an obvious strategy.
        is_ranked: whether the examples are no longer in the order of the
            data.
        given_labels: their labels `[n]`, where they are known.
    """

    ids: np.ndarray
    strategies: Mapping[str, Callable[[], Wanted]]
    has_default: bool = True
    is_ranked: bool = False
    given_labels: np.ndarray | None = None

    def wanted(self, strategy: str | None) -> Wanted:
        """How wanted the examples are, by a strategy.

        Args:
            strategy: its name; None for the obvious one.

        Raises:
            ValueError: if there is no such strategy, or a score is NaN.
        """
        if strategy is None and self.has_default:
            strategy = next(iter(self.strategies))
        if strategy is None or strategy not in self.strategies:
            names = ", ".join(f"'{name}'" for name in self.strategies)
            raise ValueError(
                f"`strategy` should be one of those of this source: {names}. "
                f"Received: {strategy!r}."
            )
        wanted = self.strategies[strategy]()
        bad = self.ids[np.isnan(wanted.scores)]
        if len(bad):
            raise ValueError(
                "There is no order of scores that are NaN. Received such of "
                f"the ids {bad[:5].tolist()}. Leave these examples out, or "
                "score them anew."
            )
        return wanted

    def beside(self, values: Any, name: str) -> np.ndarray:
        """Values `[n]` of the examples, in the order of the ids.

        Args:
            values: an array in that order, or a dict by id.
            name: name of the argument, for errors.

        Raises:
            ValueError: if they do not fit.
        """
        if isinstance(values, Mapping):
            missing = [id_ for id_ in self.ids.tolist() if id_ not in values]
            if missing:
                raise ValueError(
                    f"`{name}` should hold every id that has a score. It "
                    f"lacks {missing[:5]}."
                )
            return np.array([values[id_] for id_ in self.ids.tolist()])
        array = np.asarray(values)
        if len(array) != len(self.ids) or self.is_ranked:
            order = "ranked ones" if self.is_ranked else "in reading order"
            raise ValueError(
                f"`{name}` should be of the {len(self.ids):,} examples that "
                f"have scores, {order}. Received: an array of length "
                f"{len(array):,}. Pass a dict by id."
            )
        return array


def open_source(source: Any, test: Any, tasks: Any, verbose: int) -> Source:
    """Opens what has scores.

    Args:
        source: as of `select_examples`.
        test: the queries, for a method.
        tasks: the task of each query, or None.
        verbose: 0 for silence.

    Raises:
        TypeError: if it has no scores.
        ValueError: if arguments do not go together, or ids repeat.
    """
    if hasattr(source, "influence") and hasattr(source, "top_k"):
        if test is None:
            raise ValueError(
                "A method selects by influence on the queries that are to "
                f"gain. Received: {source!r} and test=None. Pass `test=`, "
                "examples of what the model is to be good at."
            )
        source = source.influence(test, verbose=verbose)
    elif test is not None:
        raise ValueError(
            "`test` is for a method, which scores it. Received: `test=` with "
            f"a {type(source).__name__}. Pass the method, or leave it out."
        )
    if isinstance(source, Attribution):
        opened = _of_queries(source, tasks)
    elif tasks is not None:
        raise ValueError(
            "`tasks` are of the queries of an Attribution or a method. "
            f"Received: `tasks=` with a {type(source).__name__}."
        )
    else:
        opened = _of_examples(source)
    check_unique(opened.ids, "source")
    if not len(opened.ids):
        raise ValueError("`source` should have scores. Received none.")
    return opened


def _of_queries(source: Attribution, tasks: Any) -> Source:
    scores, names, kind = source.scores, source.query_ids, "query"
    ids = source.train_ids
    if not len(names):
        raise ValueError("`source` should have a query. Received none.")
    if tasks is not None:
        tasks = np.asarray(tasks)
        if tasks.shape != names.shape:
            raise ValueError(
                f"`tasks` should name the task of each of {len(names)} "
                f"queries. Received: shape {tasks.shape}."
            )
        names, scores, kind = *task_means(scores, tasks), "task"
    return Source(
        ids,
        {
            "round_robin": lambda: by_turns(scores, names, ids, kind),
            "max": lambda: by_task(scores, names),
            "mean": lambda: by_score(scores.mean(axis=0), "mean influence"),
        },
    )


def _of_examples(source: Any) -> Source:
    """Opens scores of examples, without queries."""
    if isinstance(source, TrainingDynamics):
        return _of_dynamics(source)
    if isinstance(source, LabelIssues):
        suspicion = np.asarray(source.scores, np.float64)
        return Source(
            source.ids,
            {"clean": lambda: by_score(-suspicion, "clean")},
            is_ranked=True,
            given_labels=source.given_labels,
        )
    if isinstance(source, SelfInfluence):
        own = np.asarray(source.scores, np.float64)
        falls = len(own) > 2 and bool((np.diff(own) <= 0).all())
        in_order = bool((np.sort(source.ids) == source.ids).all())
        return Source(
            source.ids,
            {
                "hard": lambda: by_score(own, "hard"),
                "easy": lambda: by_score(-own, "easy"),
            },
            has_default=False,
            is_ranked=falls and not in_order,
        )
    ids, values = read_scores(source)
    if ids is None:
        ids = np.arange(len(values)) if values.ndim else np.arange(0)
    if values.ndim != 1 or values.dtype.kind not in "iuf":
        raise TypeError(
            "`source` should be a method, its scores, a TrainingDynamics, "
            "LabelIssues or one number for each example. Received: "
            f"{type(source).__name__}."
        )
    scores = values.astype(np.float64)
    return Source(ids, {"highest": lambda: by_score(scores, "score")})


def _of_dynamics(source: TrainingDynamics) -> Source:
    def difficulty() -> np.ndarray:
        if source.error is not None:
            return source.el2n
        return source.mean_loss

    def forgetting() -> Wanted:
        # Examples that were forgotten as often: the harder first.
        events = source.forgetting_events.astype(np.float64)
        hardness = difficulty()
        span = float(np.ptp(hardness)) or 1.0
        within = (hardness - hardness.min()) / (2 * span)
        return by_score(events + within, "forgotten")

    return Source(
        source.ids,
        {
            "hard": lambda: by_score(difficulty(), "hard"),
            "easy": lambda: by_score(-difficulty(), "easy"),
            "forgetting": forgetting,
        },
        has_default=False,
        given_labels=source.given_labels,
    )
