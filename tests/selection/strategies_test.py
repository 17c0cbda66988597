"""What makes examples wanted, against slow and obvious twins."""

import numpy as np
import pytest

from keras_tracin.selection import strategies


@pytest.fixture
def scores():
    values = np.random.default_rng(0).normal(size=(5, 30))
    return np.round(values, 1)  # some are equal


IDS = np.array([f"n{i:02}" for i in np.random.default_rng(1).permutation(30)])


def test_equal_scores_are_in_the_order_of_ids():
    order = strategies.best_first(
        np.array([1.0, 2, 1, 2]), np.array([9, 4, 3, 1])
    )
    assert order.tolist() == [3, 1, 2, 0]


def test_the_best_task_decides(scores):
    tasks = np.array(["b", "a", "b", "a", "c"])
    wanted = strategies.by_task(scores, tasks)
    for i in range(scores.shape[1]):
        means = {t: scores[tasks == t, i].mean() for t in "abc"}
        assert wanted.scores[i] == max(means.values())
        best = wanted.reasons[i].removeprefix("task ")
        assert means[best] == max(means.values())


def test_queries_take_turns(scores):
    names = np.arange(10, 15)
    wanted = strategies.by_turns(scores, names, IDS)
    left, order, reasons = set(range(30)), [], {}
    for turn in range(30):
        row = scores[turn % 5]
        best = min(left, key=lambda i: (-row[i], IDS[i]))
        left.remove(best)
        order.append(best)
        reasons[best] = f"query {names[turn % 5]}"
    assert wanted.positions(IDS).tolist() == order
    assert wanted.reasons.tolist() == [reasons[i] for i in range(30)]
    for i in range(30):
        query = int(reasons[i].removeprefix("query ")) - 10
        assert wanted.scores[i] == scores[query, i]


@pytest.mark.parametrize("budget", [1, 2, 7, 11, 12, 29, 30])
@pytest.mark.parametrize("balance", ["equal", "proportional"])
def test_quotas_add_up_and_fit_the_classes(budget, balance):
    labels = np.repeat([0, 1, 2, 3], [17, 8, 4, 1])
    numbers = strategies.quotas(labels, budget, balance)
    sizes = np.bincount(labels)
    assert numbers.sum() == budget
    assert (numbers <= sizes).all()
    if balance == "equal":  # a class that could give more has no fewer
        for number in numbers[numbers < sizes]:
            assert number >= numbers.max() - 1
    else:
        assert (np.abs(numbers - budget * sizes / 30) < 1).all()
