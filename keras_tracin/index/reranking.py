"""Candidates of a search in the order of their exact scores.

Synopsis:

    exact = tracin.among(all_ids(top)).influence(test)
    top = rank_again(top, exact, k=10)
"""

from __future__ import annotations

import numpy as np

from keras_tracin.results import Attribution, Ranking, TopK


def all_ids(top: TopK) -> np.ndarray:
    """The ids of all training examples in a result, each of them once."""
    return np.unique(
        np.concatenate([top.proponents.ids.ravel(), top.opponents.ids.ravel()])
    )


def rank_again(top: TopK, exact: Attribution, k: int) -> TopK:
    """The `k` best candidates on each side, by their exact scores.

    Args:
        top: candidates, by estimated scores.
        exact: exact scores of the candidates, for the same queries.
        k: number of examples on each side.

    Raises:
        ValueError: if there are no exact scores of a candidate.
    """
    column = {name: at for at, name in enumerate(exact.train_ids.tolist())}
    lost = [name for name in all_ids(top).tolist() if name not in column]
    if lost:
        raise ValueError(
            f"`rerank` needs training examples {lost[:5]}, which the "
            "method does not have: they were appended. Open the index "
            "with a method whose `train` holds them too."
        )
    sides = []
    for ranking, sign in ((top.proponents, -1), (top.opponents, 1)):
        columns = np.array(
            [[column[i] for i in row] for row in ranking.ids.tolist()]
        )
        scores = np.take_along_axis(exact.scores, columns, axis=1)
        order = np.argsort(sign * scores, axis=1, kind="stable")[:, :k]
        sides.append(
            Ranking(
                np.take_along_axis(ranking.ids, order, axis=1),
                np.take_along_axis(scores, order, axis=1),
            )
        )
    return TopK(sides[0], sides[1], top.query_ids)
