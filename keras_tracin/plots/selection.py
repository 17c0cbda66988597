"""The queries that a figure shows, with their proponents and opponents.

Synopsis:

    selection = select(top, queries=4, k=None, most=(20, 10))
    queries = selection.queries(test, "query_images", labels=None)
    trained = selection.examples(train, "train_images", labels=None)
    trained.batch, trained.at                # examples, and where they stand
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np

from keras_tracin.plots.shown import Shown, look_up_shown
from keras_tracin.plots.sources import Source
from keras_tracin.results import Attribution, Ranking, TopK

_DEFAULT_K = 5  # of the strongest on each side, of an `Attribution`


@dataclasses.dataclass(frozen=True)
class Selection:
    """Some queries of a result, and the strongest on each side.

    Attributes:
        top: the selected queries.
        all_ids: ids `[m]` of all queries of the result.
        rows: positions `[q]` of the selected ones among them.
        available: number of examples that the result has on each side.
        chosen: what the caller chose, of "queries" and "k".
    """

    top: TopK
    all_ids: np.ndarray
    rows: np.ndarray
    available: int
    chosen: frozenset[str]

    @property
    def note(self) -> str:
        """What the figure leaves out unasked, and how to see it; or ""."""
        parts = [self.note_of_sides] if self.note_of_sides else []
        if len(self.rows) < len(self.all_ids) and "queries" not in self.chosen:
            parts.insert(
                0,
                f"{len(self.rows)} of {len(self.all_ids):,} queries; choose "
                "others by queries=",
            )
        return ", ".join(parts)

    @property
    def note_of_sides(self) -> str:
        """The same of the examples on each side."""
        k = self.top.proponents.ids.shape[1]
        if k < self.available and "k" not in self.chosen:
            return f"{k} of {self.available:,} on each side; more by k="
        return ""

    def first(self, count: int) -> Selection:
        """The first of the selected queries."""
        part = slice(count)
        return dataclasses.replace(
            self, top=_rows_of(self.top, part), rows=self.rows[part]
        )

    def queries(
        self, data: Any, name: str, labels: Any, class_names: Any = None
    ) -> Shown:
        """The selected queries, in order.

        Args:
            data: the queries, as `fit` takes them, or an array of inputs.
            name: name of the argument, for errors.
            labels: labels in the order of `data`, or by id; by default those
                in `data`.
            class_names: names of the classes 0, 1, …

        Raises:
            ValueError: if the data does not hold the queries, or labels do
                not fit it.
        """
        source = Source.open(data, name)
        ids = self._query_ids(source)
        names = source.values(labels, "query_labels", ids, self.top.query_ids)
        return look_up_shown(source, ids, names, class_names)

    def _query_ids(self, source: Source) -> np.ndarray:
        """What to look the selected queries up by.

        Raises:
            ValueError: if the data are others than those that were scored.
        """
        all_ids, rows = self.all_ids, self.rows
        m, q = len(all_ids), len(rows)
        is_chosen = "queries" in self.chosen
        if source.examples.carries_ids:
            return all_ids[rows]
        count = source.count(m)
        if source.is_plain and count == m:
            return rows
        if source.is_plain and count == q and is_chosen:
            return np.arange(q)
        is_number = all_ids.dtype.kind in "iu"
        # Without a gap, they are all positions of what was scored.
        is_all = is_number and np.array_equal(np.sort(all_ids), np.arange(m))
        if count != m and (is_all or (source.is_plain and not is_number)):
            subset = f", or {q}, those of `queries`" if is_chosen else ""
            is_exact = source.examples.size is not None or count < m
            received = f"{count}" if is_exact else f"more than {m}"
            raise ValueError(
                f"`{source.examples.name}` should have length {m}, the queries "
                f"of the result{subset}. Received: length {received}. Pass the "
                "queries that were scored and choose some of them by "
                "`queries=`, or score data with ids, from `kt.with_ids`."
            )
        return all_ids[rows]

    def examples(
        self,
        data: Any,
        name: str,
        labels: Any,
        class_names: Any = None,
        ids: Any = None,
        is_mislabeled: Any = None,
    ) -> Shown:
        """The proponents `[q, k]` and the opponents `[q, k]` beside them.

        Args:
            data: the training examples, likewise.
            name: name of the argument, for errors.
            labels: labels, likewise.
            class_names: names of the classes.
            ids: ids of the examples, if they are arrays.
            is_mislabeled: booleans, likewise.

        Raises:
            ValueError: as `queries`.
        """
        source = Source.open(data, name, ids)
        cells = np.hstack([self.top.proponents.ids, self.top.opponents.ids])
        names = source.values(labels, "train_labels", cells)
        wrong = source.values(is_mislabeled, "is_mislabeled", cells)
        return look_up_shown(source, cells, names, class_names, wrong)


def select(
    result: Any, queries: Any, k: int | None, most: tuple[int, int]
) -> Selection:
    """Selects queries of a result, and a number of the strongest.

    Args:
        result: a `TopK` or an `Attribution`.
        queries: number of queries, from the first; or their ids; None for as
            many as fit.
        k: number of proponents and of opponents; None for as many as fit.
        most: number of queries, and of examples on each side, that fit.

    Raises:
        TypeError: if `result` is anything else.
        ValueError: if it has no queries, or `queries` or `k` do not fit it.
    """
    if not isinstance(result, TopK | Attribution):
        received = type(result).__name__
        is_side = isinstance(result, Ranking)
        raise TypeError(
            "`top` should be a TopK or an Attribution. Received: "
            f"{'one side of a TopK, a Ranking' if is_side else received}. Pass "
            "what `top_k(test, k)` or `influence(test)` returned."
        )
    if not len(result.query_ids):
        raise ValueError("`top` should hold at least one query. Received none.")
    arguments = {"queries": queries, "k": k}
    chosen = {name for name, value in arguments.items() if value is not None}
    rows = _select_rows(queries, result.query_ids, most[0])
    if isinstance(result, Attribution):
        part = Attribution(
            result.scores[rows], result.query_ids[rows], result.train_ids
        )
        default = min(_DEFAULT_K, len(result.train_ids))
        top = part.top_k(default if k is None else k)
        available = top.proponents.ids.shape[1]
    else:
        available = result.proponents.ids.shape[1]
        k = min(available, most[1]) if k is None else k
        if isinstance(k, bool) or not 1 <= k <= available:
            raise ValueError(
                f"`k` should be a whole number from 1 to {available}, the "
                f"examples that `top` has on each side. Received: {k!r}."
            )
        top = _rows_of(result, rows, slice(k))
    query_ids = np.asarray(result.query_ids)
    return Selection(top, query_ids, rows, available, frozenset(chosen))


def _rows_of(top: TopK, rows: Any, columns: slice = slice(None)) -> TopK:
    """Some queries of a result, and some of the strongest."""

    def part(side: Ranking) -> Ranking:
        return Ranking(
            side.ids[rows][:, columns], side.scores[rows][:, columns]
        )

    return TopK(part(top.proponents), part(top.opponents), top.query_ids[rows])


def _select_rows(queries: Any, query_ids: np.ndarray, most: int) -> np.ndarray:
    """Positions of queries that are named by a number or by ids."""
    count = len(query_ids)
    if queries is None:
        return np.arange(min(count, most))
    is_flag = isinstance(queries, bool | np.bool_)
    if isinstance(queries, int | np.integer) and not is_flag and queries > 0:
        return np.arange(min(count, int(queries)))
    ids: list[Any] = []
    if isinstance(queries, Iterable) and not isinstance(queries, str | bytes):
        ids = np.asarray(queries).tolist()
    if not ids or any(isinstance(id_, bool | list) for id_ in ids):
        raise ValueError(
            "`queries` should be a number of queries, 1 or more, or a list of "
            f"their ids. Received: {queries!r}."
        )
    known = query_ids.tolist()
    unknown = [id_ for id_ in ids if id_ not in known]
    if unknown:
        raise ValueError(
            f"`queries` names {unknown[0]!r}, which is no id of a query. "
            f"Received a result of {count:,} queries, with ids {known[:5]}"
            f"{' and so on' if count > 5 else ''}."
        )
    return np.array([known.index(id_) for id_ in ids])
