"""Data that is read as it is needed: the same results, little of it held."""

import weakref

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.datasets import DatasetExamples
from tests import records
from tests.engine import scoring_worker
from tests.index import index_worker

X, Y = index_worker.TRAIN
# A shard is one batch of 256 here, and of the chunks of a sweep the last is
# still held while the next is read.
MOST_HELD = 2 * 256 + 64
MOST_DRAWN_AHEAD = 4 * 256  # two batches are prefetched, one is being joined


class Watch:
    """Counts the examples that are held, and that are drawn ahead."""

    def __init__(self):
        self.held = self.ahead = self.read = 0
        self._drawn: list[list[int]] = []  # of each reading
        self._alive: list[tuple] = []

    def generator(self):
        """The training examples, one by one."""
        drawn = [0]
        self._drawn.append(drawn)
        for row, label in zip(X, Y, strict=True):
            drawn[0] += 1
            yield row, label

    def watched(self, batches):
        """`batches` of a dataset, and what is held while they are read."""

        def watched_batches(examples, size):
            handed = 0
            for batch in batches(examples, size):
                handed += len(batch)
                self._alive = [
                    (r, n) for r, n in self._alive if r() is not None
                ]
                self._alive.append((weakref.ref(batch.x), len(batch)))
                self.held = max(self.held, sum(n for _, n in self._alive))
                if self._drawn:
                    ahead = self._drawn[-1][0] - handed
                    self.ahead = max(self.ahead, ahead)
                self.read = max(self.read, handed)
                yield batch

        return watched_batches


@pytest.fixture
def watch(monkeypatch):
    watch, kind = Watch(), DatasetExamples
    monkeypatch.setattr(kind, "batches", watch.watched(kind.batches))
    return watch


def results_of(run, train, directory):
    """The three calls, with so little memory that the data is cut."""
    tracin = index_worker.tracin(run, train=train)
    index_worker.build(tracin, directory)
    top = tracin.top_k(scoring_worker.TEST, 5, verbose=0)
    own = tracin.self_influence(verbose=0)
    arrays = scoring_worker.arrays_of(top) | scoring_worker.arrays_of(own)
    return arrays, index_worker.contents(directory)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """A run, and the results from arrays."""
    run = tmp_path_factory.mktemp("run")
    model = scoring_worker.build()
    callback = kt.TracInCheckpoint(run)
    model.fit(*scoring_worker.TRAIN, callbacks=[callback], epochs=2, verbose=0)
    directory = tmp_path_factory.mktemp("expected")
    return run, *results_of(run, index_worker.TRAIN, directory)


def from_records(watch, directory):
    records.write(directory, X, Y)
    names = records.files(directory)
    assert len(names) > 3
    return records.parsed(names).batch(10)


def from_generator(watch, directory):
    signature = tf.TensorSpec([4], tf.float32), tf.TensorSpec([], tf.int64)
    return tf.data.Dataset.from_generator(
        watch.generator, output_signature=signature
    ).batch(10)


@pytest.mark.parametrize("source", [from_records, from_generator])
def test_what_is_read_gives_what_arrays_give(
    expected, watch, source, tmp_path, tmp_path_factory
):
    run, arrays, files = expected
    train = source(watch, tmp_path_factory.mktemp("data"))
    found, built = results_of(run, train, tmp_path)
    for name, array in arrays.items():
        if name.endswith("ids"):
            np.testing.assert_array_equal(found[name], array)
        else:
            np.testing.assert_allclose(found[name], array, rtol=1e-5)
    assert built == files
    assert watch.read == len(X)
    assert 0 < watch.held <= MOST_HELD < len(X) / 2
    if source is from_generator:
        assert 0 < watch.ahead <= MOST_DRAWN_AHEAD < len(X)
