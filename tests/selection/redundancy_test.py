"""Near-duplicates count once, against a slow and obvious twin."""

import numpy as np
import pytest

from keras_tracin.selection import redundancy


def slowly(order, budget, rows, max_cosine, classes=None, limits=None):
    """One candidate after another, compared with each that was taken."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    chosen, left_out, left = [], [], None if limits is None else [*limits]
    for i in order.tolist():
        if len(chosen) == budget:
            break
        if left is not None and not left[classes[i]]:
            continue
        if any(units[i] @ units[j] > max_cosine for j in chosen):
            left_out.append(i)
            continue
        chosen.append(i)
        if left is not None:
            left[classes[i]] -= 1
    return chosen, left_out


@pytest.fixture(params=[3, 512], ids=["small blocks", "one block"])
def blocks(request, monkeypatch):
    monkeypatch.setattr(redundancy, "_BLOCK", request.param)
    monkeypatch.setattr(redundancy, "_PANEL", request.param)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.usefixtures("blocks")
def test_each_is_compared_with_all_that_were_taken(seed):
    rng = np.random.default_rng(seed)
    rows, order = rng.normal(size=(60, 3)), rng.permutation(60)
    classes = rng.integers(0, 3, 60)
    limits = np.array([9, 5, 2])
    for options in ({}, {"classes": classes, "limits": limits}):
        for budget in (5, 16, 60):
            picked = redundancy.pick(
                order, budget, rows=rows.__getitem__, max_cosine=0.8, **options
            )
            chosen, left_out = slowly(order, budget, rows, 0.8, **options)
            assert picked.chosen.tolist() == chosen
            assert picked.left_out.tolist() == left_out
            units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
            near = (units[picked.left_out] * units[picked.near_to]).sum(1)
            assert (near > 0.8).all()
            assert set(picked.near_to.tolist()) <= set(chosen)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.usefixtures("blocks")
def test_near_duplicates_count_once(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 12, 80)
    base = np.linalg.qr(rng.normal(size=(20, 20)))[0][:12]
    noise = 0.01 * rng.normal(size=(80, 20))
    rows = rng.uniform(0.1, 9, size=(80, 1)) * (base[groups] + noise)
    order = rng.permutation(80)
    picked = redundancy.pick(order, 80, rows=rows.__getitem__, max_cosine=0.9)
    firsts = [np.flatnonzero(groups[order] == g)[0] for g in set(groups)]
    assert picked.chosen.tolist() == order[np.sort(firsts)].tolist()
    np.testing.assert_array_equal(
        groups[picked.left_out], groups[picked.near_to]
    )
    assert len(picked.left_out) == 80 - len(firsts)


def test_without_sketches_the_first_are_taken():
    order = np.array([3, 0, 2, 1])
    picked = redundancy.pick(order, 3)
    assert picked.chosen.tolist() == [3, 0, 2]
    assert not len(picked.left_out)


def test_rows_of_zeros_are_near_to_nothing():
    rows = np.zeros([4, 2])
    picked = redundancy.pick(
        np.arange(4), 4, rows=rows.__getitem__, max_cosine=0.0
    )
    assert picked.chosen.tolist() == [0, 1, 2, 3]
