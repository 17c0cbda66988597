"""Solvers on plain matrices, against `np.linalg.solve`."""

import numpy as np
import pytest

from keras_tracin.curvature.operators import Damped, Matrix
from keras_tracin.curvature.solvers import (
    CG,
    EKFAC,
    Arnoldi,
    Exact,
    LiSSA,
    solve,
)
from keras_tracin.curvature.spectrum import extreme_eigenvalues, lanczos
from tests.curvature.matrices import SIZE, noisy
from tests.error_rows import row


def matrix(values, seed=0):
    """A symmetric matrix with these eigenvalues."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(len(values), len(values))))
    return (q * values) @ q.T


def right_hand_sides(rows=4, size=SIZE):
    return np.random.default_rng(1).normal(size=(rows, size))


SPREAD = np.geomspace(0.05, 5, SIZE)
SOLVERS = {
    "Exact": (Exact(), 1e-10),
    "CG": (CG(tol=1e-8), 1e-6),
    "LiSSA": (LiSSA(steps=3000), 1e-3),
    "Arnoldi": (Arnoldi(rank=SIZE, complement=False), 1e-8),
}


@pytest.mark.parametrize(("solver", "tol"), SOLVERS.values(), ids=SOLVERS)
def test_solvers_agree_with_the_matrix(solver, tol):
    a, b = matrix(SPREAD), right_hand_sides()
    expected = np.linalg.solve(a, b.T).T
    found = solve(Matrix(a), b, solver)
    assert np.abs(found.value - expected).max() < tol * np.abs(expected).max()
    assert found.converged.all()
    assert not found.negative_curvature
    assert np.all(found.residual < max(tol, 1e-6))


def test_lissa_averages_the_noise_of_minibatches_out():
    operator = noisy()
    b = right_hand_sides()
    expected = solve(operator, b, Exact()).value
    found = solve(operator, b, LiSSA(batch_size=4, steps=400))
    lengths = np.linalg.norm(expected, axis=1)
    assert np.all(
        np.linalg.norm(found.value - expected, axis=1) < 0.1 * lengths
    )


def test_block_cg_takes_fewer_steps_than_one_by_one():
    a = matrix(SPREAD)
    one = solve(Matrix(a), right_hand_sides(1), CG(tol=1e-8))
    many = solve(Matrix(a), right_hand_sides(10), CG(tol=1e-8))
    assert many.steps < one.steps / 2


def test_cg_takes_rows_that_depend_on_each_other():
    a, b = matrix(SPREAD), right_hand_sides(3)
    rows = np.stack([b[0], b[0], np.zeros(SIZE), b[0] - b[1], b[1]])
    found = solve(Matrix(a), rows, CG(tol=1e-8))
    np.testing.assert_allclose(
        found.value, np.linalg.solve(a, rows.T).T, atol=1e-5
    )
    assert found.converged.all()


def test_cg_takes_more_rows_than_there_are_dimensions():
    a, b = matrix(SPREAD[:5]), right_hand_sides(9, 5)
    found = solve(Matrix(a), b, CG(tol=1e-8))
    np.testing.assert_allclose(found.value, np.linalg.solve(a, b.T).T)


def test_cg_in_float32_reaches_its_tolerance():
    a = matrix(np.geomspace(0.01, 10, 200)).astype("float32")
    b = np.random.default_rng(1).normal(size=(6, 200)).astype("float32")
    found = solve(Matrix(a), b, CG(tol=1e-4))
    assert found.converged.all()


def test_cg_out_of_steps_says_so():
    with pytest.warns(UserWarning, match=r"did not converge in 2 steps"):
        found = solve(Matrix(matrix(SPREAD)), right_hand_sides(), CG(1e-9, 2))
    assert not found.converged.any()


@pytest.mark.parametrize(
    "solver", [Exact(), CG(tol=1e-6), Arnoldi(rank=SIZE)], ids=repr
)
def test_negative_curvature_is_reported(solver):
    values = np.concatenate([[-0.5], SPREAD[1:]])
    with pytest.warns(UserWarning, match=r"not positive definite.*gauss"):
        found = solve(Matrix(matrix(values)), right_hand_sides(), solver)
    assert found.negative_curvature


def test_cg_stops_at_negative_curvature():
    values = np.concatenate([[-0.5], SPREAD[1:]])
    operator, b = Matrix(matrix(values)), right_hand_sides(1)
    with pytest.warns(
        UserWarning, match=r"stopped at step \d+, with a residual"
    ):
        found = solve(operator, b, CG(tol=1e-9))
    assert found.steps < SIZE
    # What it has is that of steps in directions of positive curvature.
    image = found.value.numpy() @ matrix(values)
    assert np.sum(image * found.value.numpy()) >= 0
    assert np.sum(found.value.numpy() * b) > 0


def test_arnoldi_divides_the_rest_by_the_damping():
    values = np.concatenate([np.zeros(SIZE - 5), np.arange(1.0, 6)])
    a, b = matrix(values), right_hand_sides()
    expected = np.linalg.solve(a + 0.1 * np.eye(SIZE), b.T).T
    found = solve(Damped(Matrix(a), 0.1), b, Arnoldi(rank=5))
    np.testing.assert_allclose(found.value, expected, atol=1e-8)
    bare = solve(Damped(Matrix(a), 0.1), b, Arnoldi(5, complement=False))
    inside = np.linalg.norm(bare.value, axis=1)
    assert np.all(inside < 0.5 * np.linalg.norm(expected, axis=1))


def test_arnoldi_sees_a_floor_that_regularisers_put_under_the_rest():
    values = np.concatenate([np.full(SIZE - 5, 0.5), np.arange(2.0, 7)])
    a, b = matrix(values), right_hand_sides()
    expected = np.linalg.solve(a + 1e-3 * np.eye(SIZE), b.T).T
    found = solve(Damped(Matrix(a), 1e-3), b, Arnoldi(rank=5))
    np.testing.assert_allclose(found.value, expected, atol=1e-8)


def test_exact_refuses_what_is_too_large_and_says_how_large():
    with pytest.raises(
        ValueError, match=row("exact-size", "take ... GB...CG()")
    ):
        solve(Matrix(matrix(SPREAD)), right_hand_sides(), Exact(max_size=29))


def test_ekfac_refuses_what_has_no_layers():
    with pytest.raises(ValueError, match=r"Received: Matrix.*CG\(\)"):
        solve(Damped(Matrix(matrix(SPREAD)), 0.1), right_hand_sides(), EKFAC())


def test_operators_say_what_damping_they_have():
    plain = Matrix(matrix(SPREAD))
    damped = Damped(plain, 0.5)
    assert (plain.damping, plain.undamped) == (0, plain)
    assert (damped.damping, damped.undamped) == (0.5, plain)
    rng = np.random.default_rng(0)
    assert damped.sample(rng, 1).damping == 0.5


def test_a_right_hand_side_of_another_width_is_refused():
    with pytest.raises(ValueError, match=r"\[m, 30\].*\(4, 7\)"):
        solve(Matrix(matrix(SPREAD)), right_hand_sides(size=7), CG())


@pytest.mark.parametrize(
    "make",
    [
        lambda: CG(tol=0),
        lambda: CG(max_steps=0),
        lambda: LiSSA(batch_size=0),
        lambda: LiSSA(steps=1),
        lambda: Arnoldi(rank=0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="Received"):
        make()


def test_lanczos_finds_the_ends_of_the_spectrum():
    values = np.concatenate([[-2.0], np.linspace(0, 1, 100), [7.0]])
    smallest, largest = extreme_eigenvalues(Matrix(matrix(values)))
    np.testing.assert_allclose([smallest, largest], [-2, 7], rtol=1e-3)


def test_lanczos_ends_where_the_space_is_exhausted():
    a = matrix(np.repeat([1.0, 2.0, 5.0], 10))
    found = lanczos(Matrix(a), steps=30)
    np.testing.assert_allclose(found.values, [1, 2, 5])
    residual = found.vectors @ a - found.values[:, None] * found.vectors
    assert np.abs(residual).max() < 1e-8
