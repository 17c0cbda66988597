"""What the tests of figures share."""

import numpy as np

from keras_tracin.results import Ranking, TopK


def top_of(proponents, opponents, query_ids=(0, 1)):
    """A `TopK` with scores 0.5, 0.25, … and their negatives."""
    proponents, opponents = np.array(proponents), np.array(opponents)
    scores = np.broadcast_to(
        0.5 ** np.arange(1, proponents.shape[1] + 1), proponents.shape
    )
    return TopK(
        Ranking(proponents, scores),
        Ranking(opponents, -scores),
        np.array(query_ids),
    )


def rows_of(count, m=2):
    """A `TopK` of `m` queries whose both sides are the examples 0 to count."""
    return top_of([np.arange(count)] * m, [np.arange(count)] * m, np.arange(m))
