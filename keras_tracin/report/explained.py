"""Why examples are suspected, as the page shows it beside each of them.

Synopsis:

    explained = Explained.of(explanation, neighbours, suspects.ids)
    explained.ids                            # arrays, of all that it needs
    explained.as_json(train_ids)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from keras_tracin.report.positions import numbers, positions
from keras_tracin.results import Ranking, TopK

_SIDES = ("opponents", "proponents")


@dataclasses.dataclass(frozen=True)
class Explained:
    """Training examples to show beside suspects, in several rows.

    Attributes:
        rows: by its name for the script, the suspects' ids `[s]` and, of each,
            ids and scores `[s, k]`.
    """

    rows: dict[str, tuple[np.ndarray, Ranking]]

    @classmethod
    def of(
        cls, explanation: TopK | None, neighbours: TopK | None, ids: np.ndarray
    ) -> Explained:
        """The rows of these results.

        Args:
            explanation: proponents and opponents of suspects, or None.
            neighbours: their nearest as proponents, or None.
            ids: ids of the suspects that are listed.

        Raises:
            ValueError: if a result is of none of them.
        """
        rows = {}
        for name, result, sides in (
            ("explanation", explanation, _SIDES),
            ("neighbours", neighbours, ("proponents",)),
        ):
            if result is None:
                continue
            is_listed = np.isin(result.query_ids, ids)
            if not is_listed.any():
                raise ValueError(
                    f"`{name}` should be of examples that are listed. "
                    f"Received: of {result.query_ids[0].item()!r} and others, "
                    f"where {ids[0].item()!r} is listed first. "
                    "`label_issues.explain(method, train)` returns it."
                )
            for side in sides:
                ranking: Ranking = getattr(result, side)
                rows[side if name == "explanation" else name] = (
                    result.query_ids[is_listed],
                    Ranking(ranking.ids[is_listed], ranking.scores[is_listed]),
                )
        return cls(rows)

    @property
    def ids(self) -> list[np.ndarray]:
        """The ids of the examples in each row, `[s, k]`."""
        return [ranking.ids for _, ranking in self.rows.values()]

    def as_json(self, train_ids: np.ndarray) -> dict[str, Any]:
        """The rows, with examples by their positions.

        Args:
            train_ids: the ids on the page, sorted.
        """
        return {
            name: {
                "of": positions(of, train_ids),
                "examples": positions(ranking.ids, train_ids),
                "scores": numbers(ranking.scores),
            }
            for name, (of, ranking) in self.rows.items()
        }
