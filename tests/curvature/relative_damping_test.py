"""EKFAC(damping="relative"): a λ for each block, of its mean eigenvalue."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.solvers import EKFAC
from keras_tracin.curvature.solvers.exact import as_matrix
from keras_tracin.losses.per_example import per_example_loss
from tests.curvature.networks import CASES, CLASSES, COUNT, gauss_newton
from tests.error_rows import row
from tests.gradients.oracle import jacobian, precision, sequential

LOSS = "sparse_categorical_crossentropy"
RELATIVE = EKFAC(damping="relative")
MULTIPLE = 0.3


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def inverted(operator, multiple):
    """The inverse, written out from EK-FAC's matrix and the exact traces."""
    size = operator.size
    plain = EKFAC().prepare(Damped(operator, 0.0))
    unit = tf.eye(size, dtype=tf.float64)
    (matrix,) = plain.apply(unit, lambda values: values)
    exact = np.diag(as_matrix(operator))
    damping = np.zeros(size)
    for block in plain.blocks:
        own = slice(block.start, block.start + block.size)
        damping[own] = multiple * exact[own].mean()
    return np.linalg.inv(matrix.numpy() + np.diag(damping))


@pytest.mark.parametrize(("build", "tokens"), CASES.values(), ids=CASES)
def test_each_block_has_a_multiple_of_its_mean_eigenvalue(build, tokens):
    operator = gauss_newton(build(), LOSS, tokens)
    inverse = RELATIVE.prepare(Damped(operator, MULTIPLE))
    unit = tf.eye(operator.size, dtype=tf.float64)
    expected = inverted(operator, MULTIPLE)
    np.testing.assert_allclose(
        inverse(unit).value, expected, atol=1e-8 * np.abs(expected).max()
    )


def test_a_regularised_block_counts_its_regulariser():
    layer = layers.Dense(
        2, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.2)
    )
    operator = gauss_newton(sequential((4,), layer))
    matrix = as_matrix(operator)
    damping = MULTIPLE * np.trace(matrix) / 8 * np.eye(8)
    inverse = RELATIVE.prepare(Damped(operator, MULTIPLE))
    received = inverse(tf.eye(8, dtype=tf.float64)).value
    np.testing.assert_allclose(received, np.linalg.inv(matrix + damping))


def test_a_layer_that_does_nothing_has_scores_of_zero():
    """Its curvature is zero, and so is the λ of its block."""
    silent = layers.Dense(3, "relu", bias_initializer="ones")
    model = sequential((4,), silent, layers.Dense(CLASSES, "softmax"))
    model.compile(loss=LOSS)
    kernel, bias = silent.get_weights()
    silent.set_weights([0 * kernel, 0 * bias - 1])
    method = kt.InfluenceFunctions(
        model, data(), solver=RELATIVE, layers=[silent.name]
    )
    scores = method.influence(data(), verbose=0).scores
    np.testing.assert_array_equal(scores, 0)


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(COUNT, 4)), rng.integers(CLASSES, size=COUNT)


@pytest.fixture
def model():
    """A network whose optimizer has made no step."""
    model = CASES["dense"][0]()
    gauss_newton(model, LOSS)  # with its weights, and compiled
    return model


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_the_damping_of_the_method_is_the_multiple(model):
    queries = tuple(part[:3] for part in data())
    scores = {}
    for given, used in (("auto", 0.1), (0.1, 0.1), (MULTIPLE, MULTIPLE)):
        method = kt.InfluenceFunctions(
            model, data(), damping=given, solver=RELATIVE
        )
        assert method.damping == used
        scores[given] = method.influence(queries, verbose=0).scores
    np.testing.assert_array_equal(scores["auto"], scores[0.1])
    train, test = (
        jacobian(
            model,
            (*part, None),
            model.trainable_variables,
            per_example_loss(model),
        )
        for part in (data(), queries)
    )
    expected = test @ inverted(gauss_newton(model, LOSS), MULTIPLE) @ train.T
    np.testing.assert_allclose(scores[MULTIPLE], expected, atol=1e-8)


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_parts_of_another_fit_of_the_curvature_are_refused(model, tmp_path):
    queries = tuple(part[:3] for part in data())

    def influence(solver):
        method = kt.InfluenceFunctions(
            model, data(), damping=0.1, solver=solver
        )
        return method.influence(queries, directory=tmp_path, verbose=0)

    influence(EKFAC())
    for other in (RELATIVE, EKFAC(draws=7)):
        with pytest.raises(ValueError, match="solver"):
            influence(other)


def test_what_has_no_damping_of_its_own_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=row("ekfac-damping", "0.1")):
        EKFAC(damping=0.1)
    with pytest.raises(ValueError, match=row("cg-relative", "relative")):
        kt.CG(preconditioner=RELATIVE)
    recorder = kt.TracInCheckpoint(tmp_path)
    model.compile("sgd", LOSS)
    model.fit(*data(), verbose=0, callbacks=[recorder])
    with pytest.raises(ValueError, match=row("source-damping", "relative")):
        kt.SOURCE(model, data(), tmp_path, curvature=RELATIVE)
