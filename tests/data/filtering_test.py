"""The selected examples of whatever `fit` takes."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.error_rows import row

N = 23
X = np.arange(2 * N, dtype="float32").reshape(N, 2)
Y = np.arange(N) % 3
W = np.linspace(0.5, 1.5, N).astype("float32")
NAMES = np.array([f"n{(7 * i) % N:02}" for i in range(N)])


def selection(ids, weights=None):
    ids = np.asarray(ids)
    weights = np.ones(len(ids)) if weights is None else np.asarray(weights)
    none = ids[:0]
    scores = -np.arange(len(ids), dtype=float)
    reasons = np.full(len(ids), "score")
    return kt.Selection(ids, scores, weights, reasons, "of 23", none, none)


def read(dataset, ids=True):
    """Ids and the parts of a batched dataset, each joined."""
    source = dataset.paired if ids else dataset
    batches = [
        tf.nest.map_structure(lambda leaf: leaf.numpy(), batch)
        for batch in source
    ]
    return tf.nest.map_structure(
        lambda *leaves: np.concatenate(leaves), *batches
    ), [len(tf.nest.flatten(batch)[0]) for batch in batches]


KEPT = [20, 3, 11, 4, 0, 9, 22]
ROWS = np.sort(KEPT)


def test_arrays_stay_arrays_in_the_order_of_the_data():
    x, y, w = selection(KEPT).of((X, Y, W))
    np.testing.assert_array_equal(x, X[ROWS])
    np.testing.assert_array_equal(y, Y[ROWS])
    np.testing.assert_array_equal(w, W[ROWS])


def test_dicts_tensors_and_lists_of_inputs_keep_their_form():
    data = ({"a": X, "b": [tf.constant(X), W]}, Y)
    x, y = selection(KEPT).of(data)
    np.testing.assert_array_equal(x["a"], X[ROWS])
    np.testing.assert_array_equal(x["b"][0].numpy(), X[ROWS])
    np.testing.assert_array_equal(x["b"][1], W[ROWS])
    np.testing.assert_array_equal(y, Y[ROWS])


@pytest.mark.filterwarnings("ignore:Ids of")
def test_tables_are_looked_up_by_their_index():
    frame = pd.DataFrame({"a": X[:, 0], "b": Y}, index=np.arange(N) + 100)
    x, y = selection(np.array(KEPT) + 100).of((frame[["a"]], frame["b"]))
    assert x.index.tolist() == (ROWS + 100).tolist()
    assert y.tolist() == Y[ROWS].tolist()


def test_datasets_with_ids_keep_them():
    data = kt.with_ids((X, Y), NAMES).shuffle(N, seed=1).batch(5)
    chosen = NAMES[KEPT]
    of = selection(chosen).of(data)
    (ids, (x, y)), sizes = read(of)
    names = ids.astype(str)
    assert sorted(names) == sorted(chosen)
    assert sizes == [5, 2]
    rows = [NAMES.tolist().index(name) for name in names]
    np.testing.assert_array_equal(x, X[rows])
    np.testing.assert_array_equal(y, Y[rows])
    (x, y), _ = read(of, ids=False)  # as `fit` sees them
    assert len(x) == len(KEPT)


def test_datasets_may_be_batched_later():
    data = kt.with_ids((X, Y))
    (ids, (x, _)), sizes = read(selection(KEPT).of(data).batch(4))
    assert ids.tolist() == ROWS.tolist()
    assert sizes == [4, 3]
    np.testing.assert_array_equal(x, X[ROWS])


def test_plain_datasets_are_read_by_position_and_gain_ids():
    data = tf.data.Dataset.from_tensor_slices(({"a": X}, Y)).batch(4)
    (ids, (x, y)), sizes = read(selection(KEPT).of(data))
    assert ids.tolist() == ROWS.tolist()
    assert sizes == [4, 3]
    np.testing.assert_array_equal(x["a"], X[ROWS])
    np.testing.assert_array_equal(y, Y[ROWS])


def test_batches_of_several_lengths_stay_as_they_are():
    def lengthen(x, y):
        return tf.repeat(x[:1], y + 1), y

    data = kt.with_ids((X, Y)).map(lengthen).padded_batch(3)
    of = selection([0, 1, 2, 5]).of(data)
    shapes = [x.shape.as_list() for x, _ in of]
    assert shapes == [[3, 3], [1, 3]]


def test_anything_else_is_read_into_arrays():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, at):
            part = slice(8 * at, 8 * at + 8)
            return X[part], Y[part]

    for data in (Batches(), lambda: iter([(X[:9], Y[:9]), (X[9:], Y[9:])])):
        x, y = selection(KEPT).of(data)
        np.testing.assert_array_equal(x, X[ROWS])
        np.testing.assert_array_equal(y, Y[ROWS])


def test_weights_become_sample_weights():
    weights = np.linspace(1, 2, len(KEPT))
    own = dict(zip(KEPT, weights, strict=True))
    expected = np.array([own[row] for row in ROWS], np.float32)
    chosen = selection(KEPT, weights)
    _, _, w = chosen.of((X, Y), weighted=True)
    np.testing.assert_allclose(w, expected)
    _, _, w = chosen.of((X, Y, W), weighted=True)
    np.testing.assert_allclose(w, expected * W[ROWS])
    positions = np.ones([N, 4], "float32")
    _, _, w = chosen.of((X, Y, positions), weighted=True)
    np.testing.assert_allclose(w, np.tile(expected[:, None], (1, 4)))
    for data in ((X, Y), (X, Y, W), (X, Y, positions)):
        _, _, expected_weights = chosen.of(data, weighted=True)
        for dataset in (
            kt.with_ids(data).batch(4),
            tf.data.Dataset.from_tensor_slices(data).batch(4),
        ):
            of = chosen.of(dataset, weighted=True)
            (x, _, w), _ = read(of, ids=False)
            np.testing.assert_array_equal(x, X[ROWS])
            np.testing.assert_allclose(w, expected_weights)
        of = chosen.of(kt.with_ids(data), weighted=True).batch(4)
        (_, _, w), _ = read(of, ids=False)
        np.testing.assert_allclose(w, expected_weights)


@pytest.mark.parametrize(
    "data",
    [
        (X[:20], Y[:20]),
        kt.with_ids((X[:20], Y[:20])).batch(4),
        kt.with_ids((X[:20], Y[:20])),
        tf.data.Dataset.from_tensor_slices((X[:20], Y[:20])).batch(4),
        lambda: iter([(X[:20], Y[:20])]),
        kt.with_ids((X, Y), NAMES).batch(4),
    ],
    ids=["arrays", "ids", "unbatched", "plain", "generator", "names"],
)
def test_data_without_the_ids_is_refused(data):
    with pytest.raises(ValueError, match=row("figure-id")):
        selection(KEPT).of(data)


def test_ids_that_occur_twice_are_refused():
    twice = kt.with_ids((X, Y), np.r_[0, 0, 2:N]).batch(4)
    with pytest.raises(ValueError, match="more than once"):
        selection([0, 5]).of(twice)
    selection([3, 5]).of(twice)  # of these there is one each
    with pytest.raises(ValueError, match="never ends"):
        selection([3, 5]).of(kt.with_ids((X, Y)).repeat())


def test_data_in_another_order_each_time_is_refused():
    data = tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(N).batch(4)
    with pytest.raises(ValueError, match="in another order"):
        selection(KEPT).of(data)
