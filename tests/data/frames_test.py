"""Tables of pandas: their columns and ids."""

import warnings

import keras
import numpy as np
import pandas as pd
import pytest

import keras_tracin as kt
from keras_tracin.data import frames
from keras_tracin.data.examples import open_examples
from tests.error_rows import row

RNG = np.random.default_rng(0)
TABLE = pd.DataFrame(RNG.normal(size=(6, 2)), columns=["a", "b"])
LABELS = pd.Series(RNG.integers(0, 2, 6))
NAMES = [f"row {at}" for at in range(6)]


@pytest.fixture(autouse=True)
def unwarned():
    frames._warned.clear()


def indexed(index):
    return TABLE.set_axis(index), LABELS.set_axis(index)


def ids_of(data):
    examples = open_examples(data)
    (batch,) = examples.batches(6)
    np.testing.assert_array_equal(batch.x, TABLE.to_numpy("float32"))
    return batch.ids.tolist(), examples.carries_ids


@pytest.mark.parametrize(
    ("index", "ids"),
    [
        (NAMES, NAMES),
        (
            pd.date_range("2024-01-01", periods=6),
            [f"2024-01-0{day} 00:00:00" for day in range(1, 7)],
        ),
        (
            pd.MultiIndex.from_product([list("ab"), range(3)]),
            [f"('{a}', {at})" for a in "ab" for at in range(3)],
        ),
    ],
    ids=["text", "dates", "several levels"],
)
def test_the_index_gives_ids(index, ids):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids_of(indexed(index)) == (ids, True)


def test_an_index_that_counts_gives_positions():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ids_of((TABLE, LABELS)) == (list(range(6)), False)


def test_other_numbers_are_ids_and_warned_of_once():
    data = indexed(np.arange(6)[::-1] * 10)
    with pytest.warns(UserWarning, match=row("index-ids")):
        assert ids_of(data) == ([50, 40, 30, 20, 10, 0], True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids_of(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (indexed([0, 1, 2, 0, 1, 2]), "names several rows alike"),
        ((TABLE.set_axis(NAMES), LABELS), "have different indices"),
    ],
)
def test_an_index_that_names_no_rows_leaves_positions(data, message):
    with pytest.warns(UserWarning, match=message):
        assert ids_of(data) == (list(range(6)), False)


def test_columns_of_a_table_are_inputs_by_name():
    table = TABLE.assign(c=pd.Categorical(["x", "y"] * 3), t=["u", "v"] * 3)
    (batch,) = open_examples((dict(table), LABELS)).batches(6)
    expected = table.to_numpy(object)
    for at, name in enumerate("abct"):
        column = np.asarray(batch.x[name])
        assert column.shape == (6, 1)
        assert column.dtype == ("float32" if at < 2 else object)
        values = expected[:, at : at + 1].astype(column.dtype)
        np.testing.assert_array_equal(column, values)


def test_ids_of_a_table_are_attached():
    data = kt.with_ids(indexed(NAMES)).shuffle(6).batch(6)
    (batch,) = open_examples(data).batches(6)
    rows = [NAMES.index(name) for name in batch.ids]
    np.testing.assert_allclose(batch.x, TABLE.to_numpy()[rows], 1e-6)


@pytest.mark.parametrize("expanded", [False, True])
def test_scores_of_columns_are_those_of_columns_of_one(expanded, tmp_path):
    inputs = {name: keras.Input((1,), name=name) for name in "ab"}
    joined = keras.layers.Concatenate()(list(inputs.values()))
    keras.utils.set_random_seed(0)
    model = keras.Model(inputs, keras.layers.Dense(1)(joined))
    model.compile("sgd", "mse")
    x = {name: TABLE[name].to_numpy("float32") for name in "ab"}
    if expanded:
        x = dict(TABLE)
    data = x, LABELS.to_numpy()
    model.fit(*data, callbacks=[kt.TracInCheckpoint(tmp_path)], verbose=0)
    tracin = kt.TracIn(model, data, tmp_path)
    columns = {name: TABLE[[name]].to_numpy("float32") for name in "ab"}
    expected = kt.TracIn(model, (columns, data[1]), tmp_path)
    np.testing.assert_allclose(
        tracin.self_influence(verbose=0).scores,
        expected.self_influence(verbose=0).scores,
        1e-5,
    )


def test_a_trace_names_examples_by_the_index():
    from keras_tracin.trace.batches import TrainingBatches

    batches = TrainingBatches(indexed(NAMES), 4, 0)
    batches.start_epoch(0)
    ids, (x, _) = batches.peek()
    rows = [NAMES.index(name) for name in ids]
    np.testing.assert_allclose(x, TABLE.to_numpy()[rows], 1e-6)


@pytest.mark.parametrize(
    "data",
    [
        ([[1.0, 2.0], [3.0, 4.0]], [0, 1]),
        (np.zeros((2, 2)), [0, 1]),
        (["one", "two"], np.zeros(2)),
    ],
)
def test_python_lists_are_refused_in_a_sentence(data):
    with pytest.raises(TypeError, match=row("python-lists", "np.array")):
        open_examples(data)
