"""Squares of gradients in a basis against whole rows."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.curvature import kronecker
from keras_tracin.curvature.block_moments import (
    in_basis,
    sum_of_squares,
    weighted_squares,
)
from keras_tracin.curvature.whitening import pieces_of
from keras_tracin.gradients import flat
from tests.curvature.networks import NETWORKS, fitted, softmax
from tests.gradients.oracle import precision, sequential


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def convolution(positions, channels, filters):
    return lambda: sequential(
        (positions, channels),
        layers.Conv1D(filters, 1, activation="tanh"),
        layers.GlobalAveragePooling1D(),
        softmax(),
    )


# Which side is rotated before the sum over the positions depends on them.
SHAPES = {
    "fewer positions than channels": (convolution(2, 8, 5), 0),
    "positions between both": (convolution(7, 9, 5), 0),
    "positions between both, the other way": (convolution(7, 4, 9), 0),
    "more positions than channels": (convolution(40, 3, 5), 0),
}
CASES = {**NETWORKS, **SHAPES}


def parts_of(inverse, factors):
    return zip(
        inverse.blocks,
        pieces_of(inverse.blocks, factors),
        inverse.bases,
        inverse.reciprocals,
        strict=True,
    )


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("network", CASES.values(), ids=list(CASES))
def test_weighted_squares_are_products_with_the_inverse(network, power):
    check_weighted_squares(*fitted(*network), power)


@pytest.mark.parametrize("power", [1, 2])
def test_large_sides_have_them_too(monkeypatch, power):
    monkeypatch.setattr(kronecker, "_LARGE_SIDE", 4)
    monkeypatch.setattr(kronecker, "_TIMES", 1)

    def build():
        return sequential(
            (3,),
            layers.Embedding(5, 3),
            layers.Dense(9, "tanh"),
            layers.GlobalAveragePooling1D(),
            softmax(),
            dtype="int32",
        )

    inverse, factors = fitted(build, 5)
    sides = [block.sides for block in inverse.blocks if block.left]
    assert (4,) in sides  # of nine columns, which keep their diagonal
    check_weighted_squares(inverse, factors, power)


def check_weighted_squares(inverse, factors, power):
    """Against the inverse of whole rows, and of power 2 their lengths."""
    found = tf.add_n(
        [
            weighted_squares(block, piece, basis, weights**power)
            for block, piece, basis, weights in parts_of(inverse, factors)
        ]
    )
    rows = flat.rows(factors)
    solved = inverse(rows).value
    expected = tf.reduce_sum((rows if power == 1 else solved) * solved, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("network", CASES.values(), ids=list(CASES))
def test_sums_of_squares_are_those_of_each_gradient(network):
    inverse, factors = fitted(*network)
    for block, piece, basis, _ in parts_of(inverse, factors):
        if not block.left:
            continue  # no whole tables are made
        expected = tf.reduce_sum(in_basis(block, piece, basis) ** 2, axis=0)
        found = sum_of_squares(block, piece, basis)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
