"""Conjugate gradients preconditioned by EK-FAC, against the matrix."""

import warnings

import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.curvature.operators import Damped, Matrix
from keras_tracin.curvature.solvers import CG, EKFAC, Exact, solve
from keras_tracin.curvature.solvers.exact import as_matrix
from tests.curvature.networks import gauss_newton
from tests.error_rows import row
from tests.gradients.oracle import precision, sequential

CLASSES = "sparse_categorical_crossentropy"


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


@pytest.fixture(scope="module")
def operator(_double_precision):
    model = sequential(
        (6,),
        layers.Dense(5, "relu"),
        layers.Dense(4, "relu", use_bias=False),
        layers.Dense(3, "softmax"),
    )
    return gauss_newton(model, CLASSES)


def right_hand_sides(size, rows=2):
    return np.random.default_rng(1).normal(size=(rows, size))


@pytest.mark.parametrize("damping", [1e-2, 1e-5])
def test_solutions_are_those_of_the_matrix(operator, damping):
    b = right_hand_sides(operator.size)
    matrix = as_matrix(operator) + damping * np.eye(operator.size)
    expected = np.linalg.solve(matrix, b.T).T
    solver = CG(tol=1e-9, preconditioner=EKFAC())
    received = solve(Damped(operator, damping), b, solver)
    assert received.converged.all()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(received.value, expected, atol=1e-7 * scale)


@pytest.mark.parametrize("preconditioner", [None, EKFAC()])
@pytest.mark.parametrize("minibatch", [4, 256])
def test_products_over_some_examples(
    operator, preconditioner, minibatch, monkeypatch
):
    monkeypatch.setattr(
        "keras_tracin.curvature.mean_loss._MINIBATCH", minibatch
    )
    b = right_hand_sides(operator.size)
    few = operator.sample(np.random.default_rng(3), 7)
    matrix = as_matrix(few) + 0.1 * np.eye(operator.size)
    assert np.abs(matrix - as_matrix(operator)).max() > 0.2
    expected = np.linalg.solve(matrix, b.T).T
    solver = CG(tol=1e-9, preconditioner=preconditioner, examples=7, seed=3)
    received = solve(Damped(operator, 0.1), b, solver)
    assert received.converged.all()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(received.value, expected, atol=1e-7 * scale)


def test_more_examples_than_there_are_is_all_of_them(operator):
    b = right_hand_sides(operator.size)
    damped = Damped(operator, 0.1)
    expected = solve(damped, b, CG(tol=1e-9)).value
    received = solve(damped, b, CG(tol=1e-9, examples=10_000)).value
    np.testing.assert_allclose(received, expected, rtol=1e-6)


def test_examples_are_one_or_more():
    with pytest.raises(ValueError, match=row("cg-examples", "0")):
        CG(examples=0)
    for other in (0.5, 20.5, True):
        with pytest.raises(ValueError, match=row("cg-examples", str(other))):
            CG(examples=other)


def test_directions_without_curvature_are_not_lost(operator):
    # Some units are dead, and their gradients are zero.
    matrix = as_matrix(operator)
    b = right_hand_sides(operator.size) @ matrix
    received = solve(
        operator, b, CG(tol=1e-8, max_steps=2000, preconditioner=EKFAC())
    )
    assert np.linalg.matrix_rank(matrix) < operator.size
    np.testing.assert_allclose(received.value @ matrix, b, atol=1e-6)


def test_a_good_preconditioner_takes_few_steps():
    # Of a linear model under squared error EK-FAC is the matrix.
    operator = gauss_newton(sequential((8,), layers.Dense(3)))
    b = right_hand_sides(operator.size)
    damped = Damped(operator, 1e-6)
    plain = solve(damped, b, CG(tol=1e-8))
    preconditioned = solve(damped, b, CG(tol=1e-8, preconditioner=EKFAC()))
    assert preconditioned.steps <= 3 < plain.steps


def test_a_hessian_is_preconditioned_with_its_gauss_newton_matrix():
    model = sequential(
        (6,), layers.Dense(4, "tanh"), layers.Dense(3, "softmax")
    )
    gauss_newton(model, CLASSES)  # compiles it, with random weights
    rng = np.random.default_rng(0)
    data = rng.normal(size=(30, 6)), rng.integers(3, size=30)
    scores = []
    for solver in (Exact(), CG(tol=1e-9, preconditioner=EKFAC())):
        method = kt.InfluenceFunctions(
            model, data, damping=1.0, curvature="hessian", solver=solver
        )
        with pytest.warns(UserWarning, match="not converged"):
            scores.append(method.influence(data, verbose=0).scores)
    scale = np.abs(scores[0]).max()
    np.testing.assert_allclose(*scores, atol=1e-6 * scale)


@pytest.mark.parametrize("preconditioner", [None, EKFAC()])
def test_to_stop_early_is_a_choice(operator, preconditioner):
    b = tf.constant(right_hand_sides(operator.size))
    solver = CG(tol=None, max_steps=2, preconditioner=preconditioner)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        received = solve(Damped(operator, 1e-4), b, solver)
    assert received.steps == 2
    assert received.residual.max() > 1e-4
    assert received.converged.all()


@pytest.mark.parametrize("preconditioner", [None, EKFAC()])
@pytest.mark.parametrize("tol", [None, 1e-9])
def test_few_steps_go_as_near_as_their_products_can(
    operator, preconditioner, tol
):
    # The residual is larger after them than at zero, and they count.
    steps, damping, size = 3, 1e-6, operator.size
    damped = Damped(operator, damping)
    matrix = as_matrix(damped)
    b = right_hand_sides(size)
    inverse = np.eye(size)
    if preconditioner is not None:
        fitted = preconditioner.prepare(damped)
        inverse = fitted(tf.eye(size, dtype=tf.float64)).value.numpy()
    krylov, rows = [], b @ inverse
    for _ in range(steps):
        krylov.append(rows)
        rows = rows @ matrix @ inverse
    space = np.linalg.qr(np.concatenate(krylov).T)[0]
    inside = space.T @ matrix @ space
    expected = (space @ np.linalg.solve(inside, space.T @ b.T)).T
    solver = CG(tol=tol, max_steps=steps, preconditioner=preconditioner)
    received = solver.prepare(damped)(tf.constant(b))
    scale = np.abs(expected).max()
    assert received.residual.max() > 1
    np.testing.assert_allclose(received.value, expected, atol=1e-6 * scale)
    assert (received.converged == (tol is None)).all()


def test_other_preconditioners_are_refused():
    with pytest.raises(ValueError, match=row("cg-preconditioner", "Exact")):
        CG(preconditioner=Exact())
    operator = Matrix(tf.eye(3, dtype=tf.float64))
    with pytest.raises(ValueError, match="needs the curvature of a network"):
        solve(operator, np.ones([1, 3]), CG(preconditioner=EKFAC()))
