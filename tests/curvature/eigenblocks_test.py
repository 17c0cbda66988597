"""Curvature by blocks, averaged over weights and between √D."""

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.curvature import kronecker
from keras_tracin.curvature.eigenblocks import fit_eigenblocks
from keras_tracin.curvature.layer_blocks import LayerBlocks
from keras_tracin.curvature.solvers.exact import as_matrix
from keras_tracin.curvature.weighed_blocks import WeighedBlocks
from tests.curvature.networks import NETWORKS, gauss_newton, tied
from tests.gradients.oracle import precision, sequential

LOSS = "sparse_categorical_crossentropy"


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


CASES = {name: of for name, of in NETWORKS.items() if name != "sequence"}


def weights_in_turn(model):
    """Two sets of weights, put into the model one after the other."""
    first = model.get_weights()
    for values in (first, [1.5 * weight + 0.1 for weight in first]):
        model.set_weights(values)
        yield
    model.set_weights(first)


CASES_OF_BOTH = [
    pytest.param(*network, weighed, id=f"{name}{', weighed' * weighed}")
    for name, network in CASES.items()
    for weighed in (False, True)
    if weighed or name == "dense"  # the plain ones are those of `EKFAC`
]


@pytest.mark.parametrize(("build", "tokens", "weighed"), CASES_OF_BOTH)
def test_eigenvalues_are_those_of_the_mean_in_each_basis(
    build, tokens, weighed
):
    network = build()
    operator = gauss_newton(network, "mse" if build is tied else LOSS, tokens)
    matrix = np.mean(
        [as_matrix(operator) for _ in weights_in_turn(network)], axis=0
    )
    kind = WeighedBlocks if weighed else LayerBlocks
    blocks = kind(operator, layers=None)
    if weighed:
        rng = np.random.default_rng(0)
        diagonal = np.exp(rng.normal(size=operator.size))
        root = blocks.take(tf.constant(diagonal)).numpy()
        logs = np.log(root**2), np.log(diagonal)
        assert np.corrcoef(*logs)[0, 1] > 0.5
        matrix = root[:, None] * matrix * root

    def visits():
        for _ in weights_in_turn(network):
            yield blocks.draws("exact", seed=0)

    fitted = fit_eigenblocks(blocks, visits)
    size = 0
    for block, basis, values in zip(
        fitted.blocks, fitted.bases, fitted.eigenvalues, strict=True
    ):
        of = slice(block.start, block.start + block.size)
        left, right = kronecker.bases_of(block, basis)
        left = np.eye(block.rows) if left is None else left
        right = np.eye(block.columns) if right is None else right
        # Entries of rows in the order that the basis has them.
        eye = np.eye(block.size)
        order = block.matrices(tf.constant(eye)).numpy()
        order = order.reshape(block.size, -1)
        vectors = order @ np.kron(left, right)
        expected = np.diag(vectors.T @ matrix[of, of] @ vectors)
        np.testing.assert_allclose(np.ravel(values), expected, atol=1e-12)
        size += block.size
    assert size == operator.size
    (squared,) = fitted.apply(tf.constant(np.eye(size)), tf.square)
    values = [np.square(own).sum() for own in fitted.eigenvalues]
    np.testing.assert_allclose(np.trace(squared), sum(values))


def test_a_single_column_is_weighed_exactly():
    operator = gauss_newton(sequential((4,), layers.Dense(1)))
    blocks = WeighedBlocks(operator, layers=None)
    diagonal = np.exp(np.random.default_rng(0).normal(size=operator.size))
    root = blocks.take(tf.constant(diagonal)).numpy()
    np.testing.assert_allclose(root**2, diagonal)
