"""Products of embedding gradients, against tables written out in full."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_tracin.gradients.lookup import shared_products


def table_rows(ids, grads, vocabulary) -> np.ndarray:
    """Gradients of the whole table, `[n, vocabulary · o]`."""
    n, _, width = grads.shape
    tables = np.zeros((n, vocabulary, width))
    for example in range(n):
        np.add.at(tables[example], ids[example], grads[example])
    return tables.reshape(n, -1)


def draw(rng, n, t, width, vocabulary, evenness=1.0):
    """Ids whose frequencies are the less even, the higher the exponent."""
    ids = (rng.uniform(size=(n, t)) ** evenness * vocabulary).astype("int32")
    return ids, rng.normal(size=(n, t, width))


def assert_products_match(left, right, vocabulary):
    found = shared_products(*map(tf.constant, (*left, *right)))
    expected = table_rows(*left, vocabulary) @ table_rows(*right, vocabulary).T
    np.testing.assert_allclose(found, expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    s=st.integers(1, 6),
    t=st.integers(1, 6),
    width=st.integers(1, 3),
    vocabulary=st.integers(1, 40),
    evenness=st.sampled_from([1.0, 5.0]),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_the_tables(
    n, m, s, t, width, vocabulary, evenness, seed
):
    rng = np.random.default_rng(seed)
    left = draw(rng, n, s, width, vocabulary, evenness)
    right = draw(rng, m, t, width, vocabulary, evenness)
    assert_products_match(left, right, vocabulary)


@pytest.mark.parametrize(
    ("tokens", "length"),
    [
        pytest.param(5000, 3, id="nearly all tokens rare"),
        pytest.param(3, 8, id="all tokens frequent"),
        pytest.param(400, 900, id="more frequent tokens than are kept"),
    ],
)
def test_frequent_and_rare_tokens_add_up(tokens, length):
    rng = np.random.default_rng(0)
    left = draw(rng, 9, length, 2, tokens)
    right = draw(rng, 20, length, 2, tokens)
    assert_products_match(left, right, tokens)


def test_examples_that_share_no_token_have_no_product():
    rng = np.random.default_rng(0)
    ids, grads = draw(rng, 4, 3, 2, 10)
    others = ids[:3] + 10, rng.normal(size=(3, 3, 2))
    found = shared_products(*map(tf.constant, (ids, grads, *others)))
    np.testing.assert_array_equal(found, np.zeros((4, 3)))


def test_only_shared_tokens_count():
    # Token 5 stands twice on the left and once on the right.
    found = shared_products(
        tf.constant([[5, 2, 5]]),
        tf.constant([[[1.0], [10.0], [2.0]]]),
        tf.constant([[7, 5]]),
        tf.constant([[[100.0], [4.0]]]),
    )
    np.testing.assert_array_equal(found, [[(1.0 + 2.0) * 4.0]])


def test_the_same_bits_come_again():
    rng = np.random.default_rng(0)
    arrays = [
        tf.constant(array)
        for array in (*draw(rng, 30, 9, 3, 50), *draw(rng, 20, 9, 3, 50))
    ]
    first, second = shared_products(*arrays), shared_products(*arrays)
    np.testing.assert_array_equal(first, second)
