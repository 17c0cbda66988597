"""Results made up for the pages of the tests."""

import numpy as np

from keras_tracin.results import Ranking, SelfInfluence, TopK

NUM_TRAIN, NUM_TEST, K = 40, 6, 3


def results(num_train=NUM_TRAIN, num_test=NUM_TEST, seed=0):
    """A `TopK` and a `SelfInfluence` of random scores."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_test, num_train)).astype("float32")
    order = np.argsort(-scores, axis=1)
    best, worst = order[:, :K], order[:, ::-1][:, :K]

    def ranking(ids):
        return Ranking(ids, np.take_along_axis(scores, ids, axis=1))

    top = TopK(ranking(best), ranking(worst), np.arange(num_test))
    own = rng.gamma(1, 10, num_train).astype("float32")
    return top, SelfInfluence(own, np.arange(num_train))


def grey_images(n=NUM_TRAIN, seed=0):
    """Images `[n, 6, 6]` of floats, far from 0 to 1."""
    return np.random.default_rng(seed).normal(0, 9, (n, 6, 6))


def labels(n=NUM_TRAIN, seed=1):
    """Class indices `[n]` of three classes."""
    return np.random.default_rng(seed).integers(0, 3, n)
