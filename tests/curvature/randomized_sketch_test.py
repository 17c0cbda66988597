"""The randomized sketch: unbiased twice over, and equal to its equation."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.curvature.operators import Damped, Matrix
from keras_tracin.curvature.solvers import Exact, solve
from keras_tracin.curvature.solvers import randomized_sketch as sketch_module
from keras_tracin.curvature.solvers.exact import as_matrix
from keras_tracin.curvature.solvers.randomized_sketch import (
    InverseSketch,
    RandomizedSketch,
    gaussian_rows,
    stochastic_gradient,
)
from tests.curvature.matrices import SIZE, noisy
from tests.error_rows import row


def exact(operator, rows):
    return solve(operator, rows, Exact()).value.numpy()


def vectors(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, SIZE))


def within_confidence(draws, expected, sigmas=5.0):
    """Whether the mean of `draws [k, ...]` may be `expected`, and its error."""
    error = np.mean(draws, axis=0) - expected
    spread = np.std(draws, axis=0) / np.sqrt(len(draws))
    assert np.all(spread > 0)
    return np.abs(error) < sigmas * spread


def test_the_projection_keeps_products_in_expectation():
    draws = [gaussian_rows(70, 6, seed, tf.float64) for seed in range(300)]
    grams = [tf.matmul(g, g, transpose_a=True) for g in draws]
    assert within_confidence(grams, np.eye(6)).all()


def test_the_projection_comes_again_from_its_seed():
    first = gaussian_rows(70, 6, 3, tf.float64)
    np.testing.assert_array_equal(first, gaussian_rows(70, 6, 3, tf.float64))
    assert not np.allclose(first[:6], first[64:])  # blocks are independent


def test_two_minibatches_make_the_gradient_unbiased():
    operator = noisy()
    rows = gaussian_rows(3, SIZE, 0, tf.float64)
    at = tf.constant(vectors(3))
    whole = 2 * operator.matmat(operator.matmat(at) - rows)
    rng = np.random.default_rng(0)
    draws = [
        stochastic_gradient(operator, at, rows, rng, 2) for _ in range(2000)
    ]
    assert within_confidence(draws, whole).all()


def test_one_minibatch_used_twice_would_be_biased():
    operator = noisy()
    rows = gaussian_rows(3, SIZE, 0, tf.float64)
    at = tf.constant(vectors(3))
    whole = 2 * operator.matmat(operator.matmat(at) - rows)
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(2000):
        sample = operator.sample(rng, 2)
        draws.append(2 * sample.matmat(sample.matmat(at) - rows))
    assert not within_confidence(draws, whole).all()


def test_the_estimate_over_seeds_of_the_projection_is_unbiased():
    operator = noisy()
    right = vectors(2)
    draws = [
        RandomizedSketch(5, seed, method="cg").prepare(operator)(right).value
        for seed in range(100)
    ]
    assert within_confidence(draws, exact(operator, right)).all()


def test_the_error_falls_as_the_theory_of_random_projections_says():
    operator = Damped(Matrix(np.zeros((SIZE, SIZE))), 0.5)
    (right,) = vectors(1)
    for dim in (4, 64):
        draws = np.stack(
            [
                RandomizedSketch(dim, seed, method="cg")
                .prepare(operator)(right[None])
                .value[0]
                for seed in range(100)
            ]
        )
        error = np.square(draws - right / 0.5).sum(axis=1).mean()
        # E‖GᵀGb − b‖² = (p + 1) ‖b‖² / d, here for b / λ.
        expected = (SIZE + 1) * np.square(right / 0.5).sum() / dim
        assert 0.8 < error / expected < 1.25


def test_scores_have_the_variance_that_is_predicted():
    operator = noisy()
    inverse = np.linalg.inv(as_matrix(operator))
    train, queries = vectors(6), vectors(3, 2)
    exact = queries @ inverse @ train.T
    lengths = [np.square(v).sum(axis=1) for v in (queries, train @ inverse)]
    predicted = np.outer(*lengths) + exact**2  # (‖q‖²‖u‖² + (q·u)²), over d
    for dim in (4, 64):
        draws = []
        for seed in range(400):
            rows = gaussian_rows(dim, SIZE, seed, tf.float64) @ inverse
            made = InverseSketch(rows, seed, np.zeros((1, 2)), 1.0)
            draws.append(made(queries).value.numpy() @ train.T)
        assert within_confidence(draws, exact).all()
        ratio = np.var(draws, axis=0) * dim / predicted
        assert 0.85 < ratio.mean() < 1.15
        assert np.all((ratio > 0.6) & (ratio < 1.5))


@pytest.mark.parametrize("method", ["sgd", "cg"])
def test_both_methods_solve_the_equation_for_the_same_projection(method):
    operator = noisy()
    made = RandomizedSketch(
        8, seed=1, method=method, steps=1500, batch_size=6, momentum=0.8
    ).prepare(operator)
    expected = exact(operator, gaussian_rows(8, SIZE, 1, tf.float64))
    error = np.linalg.norm(made.rows - expected) / np.linalg.norm(expected)
    assert error < (0.1 if method == "sgd" else 1e-2)
    assert made.residual < 0.1
    left = operator.matmat(made.rows) - gaussian_rows(8, SIZE, 1, tf.float64)
    true = np.linalg.norm(left) / np.linalg.norm(
        gaussian_rows(8, SIZE, 1, tf.float64)
    )
    assert true < 0.1


def test_the_residual_is_tracked_and_falls():
    made = RandomizedSketch(8, steps=400, batch_size=6).prepare(noisy())
    steps, residuals = made.history.T
    assert steps[-1] == 400
    assert np.all(np.diff(steps) > 0)
    assert residuals[-1] < residuals[0]


def test_the_residual_of_all_examples_is_that_of_the_equation(monkeypatch):
    operator = noisy()
    everything = len(operator.undamped.parts)
    solver = RandomizedSketch(8, steps=20, batch_size=everything)
    made = solver.prepare(operator)
    rows = gaussian_rows(8, SIZE, 0, tf.float64)
    left = tf.norm(operator.matmat(made.rows) - rows) / tf.norm(rows)
    assert made.residual == pytest.approx(float(left))
    # Measuring it takes no minibatch from the descent.
    monkeypatch.setattr(sketch_module, "_CHECKS", 1)
    again = solver.prepare(operator)
    assert len(again.history) < len(made.history)
    np.testing.assert_array_equal(again.rows, made.rows)


def test_a_sketch_that_did_not_converge_says_so():
    solver = RandomizedSketch(8, steps=2, batch_size=6, tol=1e-3)
    with pytest.warns(UserWarning, match="did not converge in 2 steps"):
        found = solve(noisy(), vectors(2), solver)
    assert not found.converged.any()


def test_rows_and_queries_meet_in_the_sketched_space():
    operator = noisy()
    made = RandomizedSketch(8, method="cg").prepare(operator)
    train, queries = tf.constant(vectors(6)), tf.constant(vectors(3, 2))
    scores = tf.matmul(made(queries).value, train, transpose_b=True)
    found = tf.matmul(
        made.project(queries), made.embed(train), transpose_b=True
    )
    np.testing.assert_allclose(found, scores)


def test_a_saved_sketch_serves_as_a_solver(tmp_path):
    operator = noisy()
    made = RandomizedSketch(8, seed=4, method="cg").prepare(operator)
    made.save(tmp_path / "sketch.npz")
    again = InverseSketch.load(tmp_path / "sketch.npz")
    right = vectors(2)
    np.testing.assert_array_equal(
        solve(operator, right, again).value, made(right).value
    )
    np.testing.assert_array_equal(again.history, made.history)


def test_a_sketch_of_another_size_is_refused():
    made = RandomizedSketch(3, method="cg").prepare(noisy())
    with pytest.raises(ValueError, match=r"made for 30 numbers.* has 4"):
        solve(Matrix(np.eye(4)), np.ones((1, 4)), made)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text").write_text("no sketch")
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    for name in ("text", "other.npz"):
        with pytest.raises(ValueError, match="no sketch of an inverse"):
            InverseSketch.load(tmp_path / name)


def test_pickled_objects_are_not_read(tmp_path):
    made = RandomizedSketch(3, method="cg").prepare(noisy())
    fields = dataclasses.asdict(made) | {"tol": np.array([{}], dtype=object)}
    np.savez(tmp_path / "sketch.npz", **fields)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        InverseSketch.load(tmp_path / "sketch.npz")


def test_too_much_memory_is_refused_with_its_size(monkeypatch):
    monkeypatch.setattr(sketch_module, "default_memory_limit", lambda: 1000)
    with pytest.raises(
        ValueError, match=row("sketch-size", "takes ... GB...smaller `dim`")
    ):
        RandomizedSketch(50).prepare(noisy())


@pytest.mark.parametrize(
    "options",
    [
        {"dim": 0},
        {"dim": 3, "steps": 0},
        {"dim": 3, "batch_size": 0},
        {"dim": 3, "method": "adam"},
        {"dim": 3, "momentum": 1.0},
    ],
)
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="Received"):
        RandomizedSketch(**options)
