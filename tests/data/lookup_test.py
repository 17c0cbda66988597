"""Examples are looked up by the ids of results, and described to people."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.examples import open_examples
from keras_tracin.data.kinds import kind_of, named_arrays
from keras_tracin.data.labels import label_values
from keras_tracin.data.lookup import look_up
from tests.error_rows import row

X, Y = np.arange(600).reshape(600, 1), np.arange(600) % 7
NAMES = np.array([f"n{i}" for i in range(600)])


@pytest.mark.parametrize(
    ("data", "ids", "rows"),
    [
        ((X, Y), [599, 3], [599, 3]),
        (
            tf.data.Dataset.from_tensor_slices((X, Y)).batch(100),
            [3, 250],
            [3, 250],
        ),
        (
            kt.with_ids((X, Y), NAMES).shuffle(600).batch(100),
            ["n3", "n599", "n0"],
            [3, 599, 0],
        ),
    ],
    ids=["arrays", "dataset", "ids"],
)
def test_examples_come_in_the_order_asked_for(data, ids, rows):
    batch = look_up(open_examples(data), np.array(ids))
    np.testing.assert_array_equal(batch.ids, ids)
    np.testing.assert_array_equal(batch.x, X[rows])
    np.testing.assert_array_equal(batch.y, Y[rows])


def test_no_more_is_read_than_up_to_the_last_position():
    class Fragile(keras.utils.PyDataset):
        def __len__(self):
            return 6

        def __getitem__(self, at):
            assert at < 3, "read too far"
            part = slice(100 * at, 100 * at + 100)
            return X[part], Y[part]

    batch = look_up(open_examples(Fragile()), np.array([250, 7]))
    np.testing.assert_array_equal(batch.x, X[[250, 7]])


def test_ids_that_are_not_there_or_twice_are_refused():
    with pytest.raises(ValueError, match=row("figure-id", "id 600")):
        look_up(open_examples((X, Y)), np.array([5, 600]))
    twice = kt.with_ids((X[:3], Y[:3]), ["a", "b", "a"]).batch(3)
    with pytest.raises(ValueError, match=row("repeated-ids")):
        look_up(open_examples(twice), np.array(["a", "b"]))


def test_inputs_are_named_and_their_kinds_told():
    x = {
        "photo": np.zeros((2, 4, 4, 3)),
        "text": (np.array(["a", "b"]), np.array([[b"c"], [b"d"]], object)),
        "row": np.zeros((2, 5)),
    }
    assert {name: kind_of(array) for name, array in named_arrays(x)} == {
        "photo": "image",
        "row": "row",
        "text/0": "text",
        "text/1": "text",
    }


@pytest.mark.parametrize(
    ("y", "labels"),
    [
        (np.array([[1.0], [2.0]]), [1, 2]),
        (np.eye(3)[[2, 0]], [2, 0]),
        (
            {"a": np.array([1, 2]), "b": np.array([0.5, 1.5])},
            ["1 0.5", "2 1.5"],
        ),
        (np.zeros((1, 12), int), ["0 0 0 0 0 0 0 0 … (12 values)"]),
    ],
)
def test_labels_are_one_value_for_each_example(y, labels):
    assert label_values(y).tolist() == labels
