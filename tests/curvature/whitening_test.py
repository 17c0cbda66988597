"""Whitened gradients against solving with whole rows."""

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.curvature.solvers.ekfac import EKFACInverse
from keras_tracin.curvature.whitening import Whitened, Whitening, in_turn
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import DenseGradients, LookupFactors
from keras_tracin.projection.mapped import Entries
from tests.curvature.networks import NETWORKS, fitted
from tests.gradients.oracle import precision


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def entries(whitening):
    return Entries(None, whitening.size)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=list(NETWORKS))
def test_products_are_those_under_the_inverse(network):
    inverse, factors = fitted(*network)
    rows = flat.rows(factors)
    expected = inverse(rows).value.numpy() @ rows.numpy().T
    whitening = Whitening.of([inverse])
    white = Whitened(whitening, entries(whitening)).sketch(factors)
    np.testing.assert_allclose(white @ tf.transpose(white), expected, rtol=1e-9)
    dense = [DenseGradients((rows,))]  # not in the form of the blocks
    again = Whitened(whitening, entries(whitening)).sketch(dense)
    np.testing.assert_allclose(again, white, rtol=1e-8, atol=1e-10)


def test_each_position_has_an_inverse_of_its_own():
    inverse, factors = fitted(*NETWORKS["dense"])
    other = EKFACInverse(
        inverse.blocks,
        tuple(tuple(side[:, ::-1] for side in own) for own in inverse.bases),
        tuple(3 + values for values in inverse.eigenvalues),
    )
    both = Whitening.of([inverse, other])
    for position, own in enumerate((inverse, other)):
        alone = Whitening.of([own])
        np.testing.assert_allclose(
            Whitened(both, entries(both)).sketch(factors, position),
            Whitened(alone, entries(alone)).sketch(factors),
        )
        rows = flat.rows(factors)
        np.testing.assert_allclose(
            both.at(position)(rows).value, own(rows).value
        )


def test_an_eigenvalue_below_zero_turns_one_side():
    inverse, factors = fitted(*NETWORKS["dense"])
    turned = EKFACInverse(
        inverse.blocks,
        inverse.bases,
        tuple(values - 0.11 for values in inverse.eigenvalues),
    )
    assert any(float(tf.reduce_min(v)) < 0 for v in turned.eigenvalues)
    rows = flat.rows(factors)
    expected = turned(rows).value.numpy() @ rows.numpy().T
    whitening = Whitening.of([turned])
    train, query = (
        Whitened(whitening, entries(whitening), side).sketch(factors)
        for side in (False, True)
    )
    np.testing.assert_allclose(query @ tf.transpose(train), expected, rtol=1e-8)


def test_look_ups_stay_look_ups_and_have_the_sketch_of_their_tables():
    inverse, factors = fitted(*NETWORKS["embedding and normalisation"])
    assert any(isinstance(group, LookupFactors) for group in factors)
    whitening = Whitening.of([inverse])
    sketched = Whitened(whitening, kt.GaussianProjection(20_000))
    white = sketched.sketch(factors)
    rows = flat.rows(factors)
    expected = inverse(rows).value.numpy() @ rows.numpy().T
    received = white.numpy() @ white.numpy().T
    lengths = np.sqrt(np.diag(expected))
    assert sketched.dim == 20_000
    # Five deviations of the projection's own error.
    gap = np.abs(received - expected) / np.outer(lengths, lengths)
    assert gap.max() < 5 * np.sqrt(2 / 20_000)


@pytest.mark.parametrize("size", [1, 4, 9, 100])
def test_examples_in_turn_are_as_all_at_once(size):
    ids = tf.constant(np.arange(18).reshape(9, 2) % 5, tf.int32)
    grads = tf.constant(np.random.default_rng(0).normal(size=(9, 2, 3)))
    factors = [LookupFactors(ids, grads, 5), DenseGradients((grads[:, 0],))]
    seen = []

    def rows(some):
        seen.append(some[1].parts[0].shape[0])
        return flat.rows(some)

    received = in_turn(rows, factors, size, 18)
    np.testing.assert_array_equal(received, flat.rows(factors))
    assert max(seen) <= size


@pytest.mark.parametrize("name", ["dense", "axes in another order"])
def test_an_inverse_is_read_as_it_was_written(name, tmp_path):
    inverse, factors = fitted(*NETWORKS[name])
    inverse.save(tmp_path / "inverse.npz")
    read = EKFACInverse.load(tmp_path / "inverse.npz")
    rows = flat.rows(factors)
    np.testing.assert_array_equal(read(rows).value, inverse(rows).value)
    assert read.blocks == inverse.blocks
    np.savez(tmp_path / "other.npz", rows=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz holds no factors"):
        EKFACInverse.load(tmp_path / "other.npz")
