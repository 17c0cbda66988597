"""Results made up for the pages of the tests, and what a page holds."""

import json
import re

import numpy as np

from keras_tracin.labels import LabelIssues
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


def issues(given=None, suggested=None, probabilities=None, num_issues=8):
    """Label issues of all training examples, by random scores.

    By default the suggested label is the next class among the issues, and the
    given one elsewhere.
    """
    _, own = results()
    ranked = own.ranking()
    if given is None:
        given = labels()
    given = np.asarray(given)[ranked.ids]
    if suggested is None:
        is_issue = np.arange(len(given)) < num_issues
        suggested = np.where(is_issue, (given + 1) % 3, given)
    else:
        suggested = np.asarray(suggested)[ranked.ids]
    if probabilities is None:
        probabilities = np.linspace(0.9, 0.4, len(given))
    return LabelIssues(
        ranked.ids,
        ranked.scores,
        num_issues,
        "el2n",
        ("ranked by 'el2n'",),
        given_labels=given,
        suggested_labels=suggested,
        suggested_probabilities=probabilities,
    )


def embedded(path):
    """The data in a page."""
    html = path.read_text(encoding="utf-8")
    pattern = r'<script type="application/json" id="data">([^<]*)</script>'
    return json.loads(re.search(pattern, html)[1])


def in_words(data, name="train", column="labels"):
    """Labels or predictions by the examples' ids."""
    columns, classes = data["sets"][name], data["classes"]
    names = [
        classes[code][1] if isinstance(code, int) else code
        for code in columns[column]
    ]
    return dict(zip(columns["ids"], names, strict=True))
