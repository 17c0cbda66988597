"""A score for each example, in whatever form it comes.

Synopsis:

    ids, scores = read_scores({7: 0.5, 2: 0.1})     # [7, 2], [0.5, 0.1]
    ids, scores = read_scores(np.array([0.5, 0.1]))     # None: reading order
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def read_scores(source: Any) -> tuple[np.ndarray | None, np.ndarray]:
    """Ids and scores, which may still be of any shape.

    Args:
        source: a result with `ids` and `scores`, a dict by id, a Series of
            pandas, whose index is the ids, or an array in reading order.

    Returns:
        The ids, or None if there are none to go by, and the scores.
    """
    if isinstance(source, Mapping):
        return np.array(list(source)), np.array(list(source.values()))
    if hasattr(source, "index") and hasattr(source, "to_numpy"):
        ids = source.index.to_numpy()
        if ids.dtype == object:
            ids = ids.astype(str)
        return ids, source.to_numpy()
    ids = getattr(source, "ids", None)
    scores = np.asarray(getattr(source, "scores", source))
    return None if ids is None else np.asarray(ids), scores
