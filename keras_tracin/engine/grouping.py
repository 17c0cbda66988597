"""Scores of groups of training examples, summed as they stream by.

Synopsis:

    groups = read_groups({"shoes": [3, 14], "bags": [15, 92]})
    sums = GroupSums(groups, num_queries=100)
    sums.add(ids, scores)      # chunk by chunk
    sums.result()              # [m, 2]
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_tracin.data.ids import check_unique, read_ids

Groups = dict[str, set]

_NAMES = (str, bytes, int, float, np.generic)  # what arrays can hold


def read_groups(groups: Iterable[Any] | Mapping[str, Iterable[Any]]) -> Groups:
    """Sets of ids by name.

    Args:
        groups: the ids of one set, which is then called "group", or a dict of
            sets by name.

    Raises:
        ValueError: if a name is neither text nor a number, or two are the same
            once they are in one array, as 1 and "1" are.
    """
    named = groups if isinstance(groups, Mapping) else {"group": groups}
    names = list(named)
    plain = all(isinstance(name, _NAMES) for name in names)
    if not plain or len(np.unique(np.array(names))) < len(names):
        raise ValueError(
            "Groups should have different names, all strings or all numbers. "
            f"Received: {names[:5]}."
        )
    return {name: set(read_ids(ids, "groups")) for name, ids in named.items()}


def describe_groups(groups: Groups) -> list[list[str]]:
    """Name and a digest of the ids of each group in order, as JSON."""
    return [
        [
            repr(name),
            hashlib.sha256(
                json.dumps(sorted(map(repr, ids))).encode()
            ).hexdigest(),
        ]
        for name, ids in groups.items()
    ]


class GroupSums:
    """Sums of scores over groups of training examples.

    Args:
        groups: the groups' ids.
        num_queries: number of queries.
    """

    def __init__(self, groups: Groups, num_queries: int):
        self._groups = groups
        self._ids = np.array(list(set().union(*groups.values())))
        self._missing = {name: set(ids) for name, ids in groups.items()}
        self._sums = np.zeros((num_queries, len(groups)))
        self._seen: list[np.ndarray] = []

    def add(self, ids: np.ndarray, scores: np.ndarray) -> None:
        """Takes `ids [c]` and `scores [m, c]` of the next training examples."""
        self.add_part(**self.part_of(ids, scores))

    def part_of(
        self, ids: np.ndarray, scores: np.ndarray
    ) -> dict[str, np.ndarray]:
        """The sums of the next training examples, for `add_part`."""
        known = ids.tolist()
        columns = []
        for members in self._groups.values():
            inside = [one in members for one in known]
            columns.append(scores[:, inside].sum(axis=1))
        sums = np.stack(columns, axis=1) if columns else scores[:, :0]
        return {"sums": sums, "members": ids[np.isin(ids, self._ids)]}

    def add_part(self, sums: np.ndarray, members: np.ndarray) -> None:
        """Takes what `part_of` returned."""
        self._sums += sums
        self._seen.append(members)
        known = members.tolist()
        for missing in self._missing.values():
            missing.difference_update(known)

    def result(self) -> np.ndarray:
        """The sums `[m, g]`.

        Raises:
            ValueError: if an id is not among the training examples, or belongs
                to several.
        """
        check_unique(np.concatenate(self._seen), "train")
        lost = {
            name: sorted(ids)[:5] for name, ids in self._missing.items() if ids
        }
        if lost:
            raise ValueError(
                "`groups` should hold ids of training examples. Received ids "
                f"that are not among them: {lost}."
            )
        return self._sums
