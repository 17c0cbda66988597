"""Examples of a `keras.utils.PyDataset`."""

import threading

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.data.examples import open_examples
from keras_tracin.trace.batches import TrainingBatches
from tests.error_rows import row

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3)).astype("float32")
Y = RNG.integers(0, 2, 11)
SIZE = 4


class Pairs(keras.utils.PyDataset):
    """Batches of four and a last one of three."""

    def __init__(self, **options):
        super().__init__(**options)
        self.threads = set()

    def __len__(self):
        return -(-len(X) // SIZE)

    def __getitem__(self, at):
        self.threads.add(threading.get_ident())
        rows = slice(SIZE * at, SIZE * (at + 1))
        return X[rows], Y[rows]


def read(data, batch_size):
    return list(open_examples(data).batches(batch_size))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 32])
def test_batches_together_are_the_data_in_order(workers, batch_size):
    data = Pairs(workers=workers, max_queue_size=2)
    batches = read(data, batch_size)
    assert {len(batch) for batch in batches[:-1]} <= {batch_size}
    np.testing.assert_array_equal(
        np.concatenate([batch.ids for batch in batches]), np.arange(11)
    )
    np.testing.assert_array_equal(
        np.concatenate([batch.x for batch in batches]), X
    )
    np.testing.assert_array_equal(
        np.concatenate([batch.y for batch in batches]), Y
    )


def test_workers_read_in_threads_of_their_own():
    data = Pairs(workers=2)
    read(data, 4)
    assert len(data.threads - {threading.get_ident()}) >= 1
    alone = Pairs()
    read(alone, 4)
    assert alone.threads == {threading.get_ident()}


def test_scores_are_those_of_the_same_arrays(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    callback = kt.TracInCheckpoint(tmp_path)
    model.fit(Pairs(), epochs=2, callbacks=[callback], verbose=0)
    test = X[:2] + 1, Y[:2]
    scores = kt.TracIn(model, Pairs(), tmp_path).influence(test, verbose=0)
    expected = kt.TracIn(model, (X, Y), tmp_path).influence(test, verbose=0)
    np.testing.assert_allclose(scores.scores, expected.scores, rtol=1e-5)
    np.testing.assert_array_equal(scores.train_ids, np.arange(11))
    queries = kt.TracIn(model, (X, Y), tmp_path).influence(Pairs(), verbose=0)
    assert queries.scores.shape == (11, 11)


class Weighted(Pairs):
    def __getitem__(self, at):
        x, y = super().__getitem__(at)
        return {"a": x}, y, np.ones(len(y))


def test_structures_and_weights_are_kept():
    (batch,) = read(Weighted(), 11)
    np.testing.assert_array_equal(batch.x["a"], X)
    assert batch.sample_weight.dtype == np.float32


class Noisy(Pairs):
    def __getitem__(self, at):
        x, y = super().__getitem__(at)
        return x + np.random.normal(size=x.shape), y


class Endless(Pairs):
    num_batches = None


class Empty(Pairs):
    def __len__(self):
        return 0


class Short(Pairs):
    def __getitem__(self, at):
        x, y = super().__getitem__(at)
        return (x[:, :2] if at else x), y


class Alone(Pairs):
    def __getitem__(self, at):
        return super().__getitem__(at)[0]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Noisy, row("unstable-batches", "`Noisy.__getitem__`")),
        (Endless, row("endless-py-dataset")),
        (Empty, row("empty-data", "a `Empty`")),
        (Short, "the same shapes. Received .* from id 4"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        read(kind(), 4)


class Shuffling(Pairs):
    """As Keras's documentation shuffles: between epochs."""

    order = np.arange(11)

    def __getitem__(self, at):
        return tuple(a[self.order][SIZE * at :][:SIZE] for a in (X, Y))

    def on_epoch_end(self):
        self.order = self.order[::-1]


def test_an_order_that_changes_between_epochs_is_warned_of():
    data = Shuffling()
    data.on_epoch_end()
    with pytest.warns(UserWarning, match="the order that it has now"):
        batches = read(data, 11)
    np.testing.assert_array_equal(batches[0].x, X[::-1])


def test_the_number_of_examples_is_estimated_by_that_of_batches():
    examples = open_examples(Pairs())
    assert (examples.size, examples.expected_size) == (None, 12)


def test_tracing_needs_arrays():
    with pytest.raises(TypeError, match="a Pairs, which is read batch by"):
        TrainingBatches(Pairs(), 4, 0)


class Listing(Pairs):
    def __getitem__(self, at):
        return list(super().__getitem__(at))


def test_a_list_of_x_and_y_is_taken_as_fit_takes_it():
    np.testing.assert_array_equal(read(Listing(), 11)[0].y, Y)


def test_batches_without_labels_are_refused():
    with pytest.raises(TypeError, match=r"a tuple of arrays \(x, y\)"):
        read(Alone(), 4)
