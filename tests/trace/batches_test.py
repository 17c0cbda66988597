"""Batches that `fit` reads and a watcher sees first."""

import numpy as np
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.trace.batches import TrainingBatches
from tests.trace.helpers import X, Y


def read(batches, epoch):
    """The ids of an epoch's batches, checked to be what `fit` gets."""
    batches.start_epoch(epoch)
    ids = []
    for x, _ in batches.dataset():
        batch_ids, (seen, _) = batches.peek()
        np.testing.assert_array_equal(x, seen)
        np.testing.assert_array_equal(x, X[batch_ids])
        ids.append(batch_ids.tolist())
        batches.advance()
    assert batches.peek() is None
    return ids


def test_arrays_are_shuffled_by_seed_and_epoch_alone():
    batches = TrainingBatches((X, Y), 10, seed=3)
    first, second = read(batches, 0), read(batches, 1)
    assert [len(ids) for ids in first] == [10, 10, 4]
    assert sorted(i for ids in first for i in ids) == list(range(24))
    assert first != second
    assert read(TrainingBatches((X, Y), 10, seed=3, epochs_read=1), 1) == second
    assert read(TrainingBatches((X, Y), 10, seed=4), 0) != first


def test_reading_ahead_loses_nothing():
    batches = TrainingBatches((X, Y), 10, seed=3)
    expected = read(batches, 0)
    batches.start_epoch(0)
    ahead = list(batches.dataset().prefetch(tf.data.AUTOTUNE))
    assert len(ahead) == 3
    for ids in expected:
        assert batches.peek()[0].tolist() == ids
        batches.advance()


def test_ids_of_text_are_kept():
    data = kt.with_ids((X[:4], Y[:4]), ids=["a", "b", "c", "d"]).batch(3)
    batches = TrainingBatches(data, 32, seed=0)
    batches.start_epoch(0)
    assert batches.peek()[0].tolist() == ["a", "b", "c"]
