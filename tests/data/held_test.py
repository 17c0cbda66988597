"""Examples in memory are read in order, by position and by id."""

import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.data.batches import Batch, join
from keras_tracin.data.examples import open_examples, select
from keras_tracin.data.held import HeldExamples
from keras_tracin.data.with_ids import with_ids
from tests.error_rows import row

COUNT = 10
X = np.arange(2 * COUNT, dtype="float32").reshape(COUNT, 2)
Y = 10 * np.arange(COUNT)
NAMES = np.array([f"example {at}" for at in range(COUNT)])


@pytest.fixture(params=["arrays", "dataset", "with ids"])
def examples(request):
    data = {
        "arrays": (X, Y),
        "dataset": tf.data.Dataset.from_tensor_slices((X, Y)).batch(3),
        "with ids": with_ids((X, Y), NAMES).batch(3),
    }[request.param]
    return open_examples(data)


def test_held_examples_are_those_that_were_read(examples):
    held = HeldExamples.read(examples)
    assert len(held) == held.size == COUNT
    assert held.carries_ids == examples.carries_ids
    expected = join(list(examples.batches(4)))
    whole = join(list(held.batches(4)))
    np.testing.assert_array_equal(whole.ids, expected.ids)
    np.testing.assert_array_equal(held.ids, expected.ids)
    np.testing.assert_array_equal(whole.x, X)
    np.testing.assert_array_equal(whole.y, Y)


def test_examples_are_taken_by_position_and_by_id(examples):
    held = HeldExamples.read(examples)
    rows = np.array([7, 0, 7])
    batch = held.take(rows)
    np.testing.assert_array_equal(batch.x, X[rows])
    np.testing.assert_array_equal(held.positions_of(batch.ids), rows)
    unknown = np.array(["nobody"]) if held.carries_ids else np.array([COUNT])
    assert held.positions_of(unknown) == [-1]


def test_arrays_in_memory_are_not_copied():
    examples = open_examples((X, Y))
    assert HeldExamples.read(examples) is examples
    assert np.shares_memory(next(examples.batches(4)).x, X)


def test_what_does_not_fit_is_not_held(examples):
    size = X.nbytes + Y.nbytes
    assert HeldExamples.read_within(examples, size) is not None
    assert HeldExamples.read_within(examples, size - 1) is None


def test_ids_that_name_several_examples_have_no_positions():
    held = HeldExamples((X, Y), "train", ids=np.zeros(COUNT, int))
    with pytest.raises(
        ValueError, match=row("repeated-ids", "`train` should have")
    ):
        held.positions_of(np.array([0]))


def test_a_part_of_the_data_may_be_missing():
    batch = Batch(np.arange(3), {"a": X[:3], "b": None}, None, np.ones(3))
    both = join([batch, batch.take(np.array([2]))])
    assert both.ids.tolist() == [0, 1, 2, 2]
    assert both.x["b"] is None
    assert both.y is None
    np.testing.assert_array_equal(both.x["a"], X[[0, 1, 2, 2]])


def test_selected_examples_carry_the_ids_of_their_source(examples):
    selected = select(examples, join(list(examples.batches(4))).ids[[1, 5]])
    assert selected.carries_ids == examples.carries_ids
    (batch,) = selected.batches(4)
    np.testing.assert_array_equal(batch.y, Y[[1, 5]])
