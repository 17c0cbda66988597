"""Warns of the same training examples for every query.

Scores are products of two gradients, so that an example with a large one is
near the top, or the bottom, of every ranking, whatever the query is.

Synopsis:

    warn_of_recurring(top, num_train, "Pass `normalize='train'`.")
"""

from __future__ import annotations

import warnings

import numpy as np

from keras_tracin.results import TopK

# Warned of from here: half of what two queries have, beyond chance.
_LARGE = 0.5
_FEWEST = 3  # queries that say something about others


def warn_of_recurring(
    top: TopK, num_train: int | None, remedy: str, stacklevel: int = 5
) -> None:
    """Warns if most queries have the same proponents, or the same opponents.

    A side counts only where its scores have its sign: proponents above zero,
    opponents below. Queries of one class may have the same opponents for good
    reasons; the warning says what they have in common, not that it is wrong.

    Args:
        top: the strongest training examples of each query.
        num_train: number of training examples to choose from, where known.
        remedy: what to do, in a sentence.
        stacklevel: as in `warnings.warn`.
    """
    if len(top) < _FEWEST:
        return
    sides = {"proponents": top.proponents, "opponents": top.opponents}
    signs = {"proponents": 1, "opponents": -1}
    if num_train is None:  # at least as many as there are here
        num_train = len(np.union1d(top.proponents.ids, top.opponents.ids))
    for side, ranking in sides.items():
        k = ranking.ids.shape[1]
        chance = k / num_train
        if chance >= 1 or not (signs[side] * ranking.scores > 0).all():
            continue
        if (ranking.overlap - chance) / (1 - chance) < _LARGE:
            continue
        ids = ", ".join(
            f"{id_!r} ({queries})"
            for id_, queries in ranking.most_common(3).items()
        )
        warnings.warn(
            f"Most queries have the same {side}: two of them have "
            f"{ranking.overlap:.0%} of their {k} in common, by chance "
            f"{chance:.0%}. The most common ones, with their numbers of "
            f"queries: {ids}, of {len(top)}. Examples with large gradients "
            f"(outliers, wrong labels) lead every ranking. {remedy}",
            stacklevel=stacklevel,
        )
        return
