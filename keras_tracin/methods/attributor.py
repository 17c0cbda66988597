"""The contract of all methods.

Programs, checks, reports, indexes and ensembles use methods by these calls and
nothing else.

Synopsis:

    def find_proponents(method: Attributor, test):
        return method.top_k(test, k=10).proponents.ids
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, Self

from keras_tracin.engine.planning import Plan
from keras_tracin.results import Attribution, SelfInfluence, TopK

Directory = str | os.PathLike
GroupsOfIds = Iterable[Any] | Mapping[str, Iterable[Any]]


class Attributor(Protocol):
    """A method that scores training examples for queries.

    Positive scores are proponents: training on the example lowers the loss at
    the query.
    """

    def influence(
        self,
        test: Any,
        *,
        groups: GroupsOfIds | None = None,
        contrast: Any = None,
        query_tokens: Any = None,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> Attribution:
        """The score of every training example for every query.

        Args:
            test: the queries, in the same form as the training examples.
            groups: ids of training examples by the group's name: scores are
                then sums over each group.
            contrast: a query for each of `test`, whose scores are taken off.
            query_tokens: which tokens of queries are asked about.
            directory: where finished parts are kept and shared.
            verbose: 0 for silence.

        Returns:
            Scores `[num_test, num_train]`, or `[num_test, num_groups]`.
        """

    def top_k(
        self,
        test: Any,
        k: int = 10,
        *,
        query_tokens: Any = None,
        directory: Directory | None = None,
        verbose: int = 1,
    ) -> TopK:
        """The `k` strongest proponents and opponents of every query.

        Args:
            test: the queries, in the same form as the training examples.
            k: number of training examples on each side.
            query_tokens: which tokens of queries are asked about.
            directory: where finished parts are kept and shared.
            verbose: 0 for silence.
        """

    def self_influence(
        self, *, directory: Directory | None = None, verbose: int = 1
    ) -> SelfInfluence:
        """The score of every training example for itself.

        Args:
            directory: where finished parts are kept and shared.
            verbose: 0 for silence.

        Raises:
            NotImplementedError: if the method has none; the message names
                what to use.
        """

    def plan(self, test: Any = None) -> Plan:
        """The work, memory and time that scoring will take.

        Args:
            test: the queries; without them, the plan of self-influence.
        """

    def among(self, ids: Any) -> Self:
        """The method restricted to some training examples.

        Args:
            ids: their ids.
        """

    def describe(self) -> dict[str, Any]:
        """The method and its options, as JSON."""
