"""Batches that `fit` reads and a watcher sees first."""

import numpy as np
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.trace.source import Source
from tests.trace.helpers import X, Y


def read(source, epoch):
    """The ids of an epoch's batches, checked to be what `fit` gets."""
    source.begin(epoch)
    ids = []
    for x, _ in source.dataset():
        batch_ids, (seen, _) = source.peek()
        np.testing.assert_array_equal(x, seen)
        np.testing.assert_array_equal(x, X[batch_ids])
        ids.append(batch_ids.tolist())
        source.advance()
    assert source.peek() is None
    return ids


def test_arrays_are_shuffled_by_seed_and_epoch_alone():
    source = Source((X, Y), 10, seed=3)
    first, second = read(source, 0), read(source, 1)
    assert [len(ids) for ids in first] == [10, 10, 4]
    assert sorted(i for ids in first for i in ids) == list(range(24))
    assert first != second
    assert read(Source((X, Y), 10, seed=3, done=1), 1) == second
    assert read(Source((X, Y), 10, seed=4), 0) != first


def test_reading_ahead_loses_nothing():
    source = Source((X, Y), 10, seed=3)
    expected = read(source, 0)
    source.begin(0)
    ahead = list(source.dataset().prefetch(tf.data.AUTOTUNE))
    assert len(ahead) == 3
    for ids in expected:
        assert source.peek()[0].tolist() == ids
        source.advance()


def test_ids_of_text_are_kept():
    data = kt.with_ids((X[:4], Y[:4]), ids=["a", "b", "c", "d"]).batch(3)
    source = Source(data, 32, seed=0)
    source.begin(0)
    assert source.peek()[0].tolist() == ["a", "b", "c"]
