"""Maps that are fitted to gradients, against NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients.factors import DenseGradients
from keras_tracin.projection.mapped import (
    Entries,
    Mapped,
    leading_directions,
    rotation,
)

RNG = np.random.default_rng(0)
GRADIENTS = RNG.normal(size=(5, 7))
FACTORS = [
    DenseGradients((tf.constant(GRADIENTS[:, :3]),)),
    DenseGradients((tf.constant(GRADIENTS[:, 3:]),)),
]


def test_chosen_entries_are_those_of_the_position():
    chosen = [tf.constant([6, 0]), tf.constant([2, 3])]
    entries = Entries(chosen, 7)
    assert entries.dim == 2
    for position, own in enumerate(chosen):
        received = tf.function(entries.sketch)(FACTORS, tf.constant(position))
        np.testing.assert_array_equal(received, GRADIENTS[:, own.numpy()])
    whole = Entries(None, 7)
    assert whole.dim == 7
    np.testing.assert_array_equal(whole.sketch(FACTORS), GRADIENTS)


def test_each_position_is_mapped_by_its_own_matrix():
    matrices = [RNG.normal(size=(7, 4)) for _ in range(3)]
    mapped = Mapped(Entries(None, 7), [tf.constant(m) for m in matrices])
    assert mapped.dim == 4
    for position, matrix in enumerate(matrices):
        np.testing.assert_allclose(
            mapped.sketch(FACTORS, position), GRADIENTS @ matrix
        )


@pytest.mark.parametrize("dim", [1, 4, 9])
def test_leading_directions_are_the_first_singular_vectors(dim):
    rows = RNG.normal(size=(12, 20)) * np.arange(1, 21)
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    received = leading_directions(rows, dim)
    turns = np.sign(np.sum(received.T * right[:dim], axis=1))
    np.testing.assert_allclose(
        received.T * turns[:, None], right[:dim], atol=1e-6
    )


def test_directions_beyond_the_span_of_the_rows_are_zero():
    rows = np.outer([1.0, 2.0, -1.0], np.arange(6.0))
    received = leading_directions(rows, 3)
    assert received.shape == (6, 3)
    np.testing.assert_array_equal(received[:, 1:], 0)
    np.testing.assert_allclose(rows @ received @ received.T, rows, atol=1e-9)
    assert leading_directions(rows, 10).shape == (6, 3)


def test_a_rotation_leaves_products_and_makes_entries_alike():
    turn = rotation(200)
    np.testing.assert_allclose(turn @ turn.T, np.eye(200), atol=1e-12)
    np.testing.assert_array_equal(turn, rotation(200))
    assert np.abs(turn[0]).max() < 5 / np.sqrt(200)  # of a single entry
