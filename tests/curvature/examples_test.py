"""Training data that is read many times."""

import numpy as np
import pytest

from keras_tracin.curvature import examples as examples_module
from keras_tracin.curvature.examples import Minibatches
from keras_tracin.data.examples import open_examples

COUNT = 20
X = np.arange(2 * COUNT, dtype="float32").reshape(COUNT, 2)
Y = np.arange(COUNT)


def held(memory, data=(X, Y)):
    return Minibatches(open_examples(data), memory)


@pytest.fixture(autouse=True)
def _small_reads(monkeypatch):
    monkeypatch.setattr(examples_module, "_READ", 6)


@pytest.mark.parametrize("memory", [0, 10**6], ids=["read anew", "kept"])
def test_every_example_comes_once_in_order(memory):
    source = held(memory)
    for _ in range(2):
        batches = list(source.batches(7))
        assert [len(y) for _, y in batches] == [7, 7, 6]
        found = np.concatenate([x for x, _ in batches])
        np.testing.assert_array_equal(found, X)


def test_a_draw_is_of_different_examples_with_their_own_labels():
    rng = np.random.default_rng(0)
    source = held(10**6)
    seen = set()
    for _ in range(30):
        x, y = source.draw(rng, 5)
        assert len(set(y.numpy().tolist())) == 5
        np.testing.assert_array_equal(x, X[y.numpy()])
        seen |= set(y.numpy().tolist())
    assert seen == set(range(COUNT))


def test_a_draw_of_all_is_all():
    _, y = held(10**6).draw(np.random.default_rng(0), 50)
    np.testing.assert_array_equal(y, Y)


def test_what_does_not_fit_is_drawn_from_a_sample_that_does():
    size = X.nbytes + Y.nbytes
    source = held(size // 2)
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="come from 10 of its 20 examples"):
        draws = [source.draw(rng, 4) for _ in range(40)]
    seen = {label for _, y in draws for label in y.numpy().tolist()}
    assert len(seen) == 10
    for x, y in draws:
        np.testing.assert_array_equal(x, X[y.numpy()])
