"""Which examples are compared, and how numbers are."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.fingerprint import (
    Mismatch,
    agree,
    examples_with,
    spread_examples,
    spread_rows,
)
from keras_tracin.engine.measures import lengths, random_products
from keras_tracin.gradients.factors import (
    DenseGradients,
    LookupFactors,
    OuterFactors,
)
from keras_tracin.models.descriptions import describe, describe_loss, difference

RNG = np.random.default_rng(0)


def test_examples_are_spread_over_the_classes():
    classes = np.repeat([0, 1, 2], [90, 9, 1])
    rows = spread_rows(100, classes, 12)
    assert np.bincount(classes[rows]).tolist() == [6, 5, 1]
    rows = spread_rows(100, np.arange(100) // 2, 12)  # more classes than rows
    assert len(np.unique(rows // 2)) == 12
    assert spread_rows(100, None, 5).tolist() == [0, 24, 49, 74, 99]
    assert spread_rows(3, None, 5).tolist() == [0, 1, 2]


def test_examples_of_arrays_come_from_all_of_them():
    x, y = np.arange(5000.0), np.repeat([0, 1], [4990, 10])
    batch = spread_examples(open_examples((x, y)))
    assert batch.ids.max() == 4999
    assert sorted(batch.y.tolist()) == [0] * 22 + [1] * 10


def test_examples_of_a_stream_come_from_its_beginning():
    x = np.arange(5000.0)
    read = []

    def note(row, label):
        tf.py_function(lambda value: read.append(value.numpy()), [row], [])
        return row, label

    data = tf.data.Dataset.from_tensor_slices((x, 2 * x)).map(note).batch(8)
    batch = spread_examples(open_examples(data))
    assert len(batch) == 32
    assert batch.ids.max() < 1024
    assert max(read) < 1200
    np.testing.assert_array_equal(batch.y, 2 * x[batch.ids])


def test_the_same_examples_are_found_by_their_ids():
    data = kt.with_ids((np.arange(6.0), np.arange(6)), list("abcdef")).batch(4)
    batch = examples_with(open_examples(data), np.array(["e", "b"]))
    assert batch.ids.tolist() == ["e", "b"]
    assert batch.y.tolist() == [4, 1]
    with pytest.raises(Mismatch, match=r"ids \['z'\] are needed"):
        examples_with(open_examples(data), np.array(["e", "z"]))


def test_numbers_may_differ_by_a_share_of_the_largest(tmp_path):
    path = tmp_path / "numbers.npz"
    losses = np.array([1.0, 1e-9, np.nan, np.inf])
    agree(path, {"losses": losses}, 1e-4)
    agree(path, {"losses": losses + np.array([5e-5, -5e-5, 0, 0])}, 1e-4)
    with pytest.raises(Mismatch, match=r"loss gives.*received 1.0002, expect"):
        agree(path, {"losses": losses + np.array([2e-4, 0, 0, 0])}, 1e-4)
    with pytest.raises(Mismatch, match=r"received 1, expected nan"):
        agree(path, {"losses": np.nan_to_num(losses, nan=1.0)}, 1e-4)
    with pytest.raises(Mismatch, match=r"shape \(2,\), expected shape \(4,\)"):
        agree(path, {"losses": losses[:2]}, 1e-4)
    agree(path, {"losses": losses * (1 + 5e-3)}, 1e-2)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        agree(path, {"losses": losses}, 1e-4)


def test_what_comes_first_is_named_first(tmp_path):
    path = tmp_path / "numbers.npz"
    kept = {name: np.ones(2) for name in ("outputs", "losses", "norms")}
    agree(path, kept, 1e-4)
    changed = {name: 2 * array for name, array in kept.items()}
    with pytest.raises(Mismatch, match="has other outputs"):
        agree(path, changed, 1e-4)
    with pytest.raises(Mismatch, match=r"other lengths.*tf.stop_gradient"):
        agree(path, {**kept, "norms": 2 * np.ones(2)}, 1e-4)


def test_random_products_are_linear_in_the_gradient():
    x, d = (RNG.normal(size=(3, 2, k)).astype("float32") for k in (4, 5))
    ids = RNG.integers(0, 7, (3, 2))

    def products(scale):
        factors = (
            OuterFactors(tf.constant(x), tf.constant(scale * d), bias=True),
            LookupFactors(tf.constant(ids), tf.constant(scale * d), 7),
            DenseGradients(
                (tf.constant(scale * x[:, 0]), tf.constant(scale * d[:, 0]))
            ),
        )
        return random_products(factors).numpy(), lengths(factors).numpy()

    (one, norms), (three, triple) = products(1.0), products(3.0)
    np.testing.assert_allclose(three, 3 * one, rtol=1e-5)
    np.testing.assert_allclose(triple, 3 * norms, rtol=1e-5)
    kernels = np.einsum("nti,nto->nio", x, d)
    table = np.zeros((3, 7, 5))
    np.add.at(table, (np.arange(3)[:, None], ids), d)
    parts = (kernels, d.sum(1), table, x[:, 0], d[:, 0])
    squares = [np.square(part.reshape(3, -1)).sum(axis=1) for part in parts]
    expected = np.sqrt(sum(squares))
    np.testing.assert_allclose(norms, expected, rtol=1e-5)


def test_descriptions_do_not_depend_on_the_process():
    losses = keras.losses
    first = losses.Huber(delta=2.0, name="one")
    assert describe(first) == describe(losses.Huber(delta=2.0, name="two"))
    assert describe(first) != describe(losses.Huber(delta=3.0))
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    assert describe_loss(model, "mse") == describe_loss(
        model, losses.mean_squared_error
    )
    assert describe(kt.TensorSketch(4, seed=1)) == {
        "class": "TensorSketch",
        "dim": 4,
        "seed": 1,
    }
    assert "0x" not in str(describe([object(), lambda: 0, np.eye(2), model]))


def test_the_first_entry_that_differs_is_named():
    one, other = {"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}
    assert difference(one, one) is None
    assert difference(one, other) == ("a.c", 2, "nothing")
