"""Projections: unbiased, as noisy as theory says, the same in any form."""

import math

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.gradients import flat
from keras_tracin.gradients.factors import (
    DenseGradients,
    LookupFactors,
    OuterFactors,
    inner,
    materialize,
)
from keras_tracin.projection import gaussian, project, random
from tests.error_rows import row

N = 3  # examples


def normal(*shape, seed=0):
    return tf.constant(
        np.random.default_rng(seed).normal(size=shape).astype("float32")
    )


def ids(*shape, below, seed=0):
    drawn = np.random.default_rng(seed).integers(0, below, shape)
    return tf.constant(drawn.astype("int32"))


# One of each kind, small enough for the gradients to be written out.
FACTORS = {
    "dense, kept in factors": OuterFactors(
        normal(N, 1, 40), normal(N, 1, 30, seed=1), bias=True
    ),
    "sequence": OuterFactors(normal(N, 4, 7), normal(N, 4, 5, seed=1)),
    "sequence of unknown length": OuterFactors(
        normal(N, 4, 7), normal(N, 4, 5, seed=1), bias=True
    ),
    "table": LookupFactors(ids(N, 6, below=9), normal(N, 6, 5), vocabulary=9),
    "kernel made": DenseGradients((normal(N, 60), normal(N, 10)), outputs=10),
    "vectors": DenseGradients((normal(N, 13), normal(N, 50))),
}
ALL = tuple(FACTORS.values())
PROJECTIONS = {
    "Gaussian": kt.GaussianProjection(12, seed=3),
    "factored": kt.FactoredProjection(12, seed=3),
    "factored, sides apart": kt.FactoredProjection(12, seed=3, joint=False),
    "tensor sketch": kt.TensorSketch(12, seed=3),
}

each_projection = pytest.mark.parametrize(
    "projection", PROJECTIONS.values(), ids=PROJECTIONS
)


def estimates(projection, factors, draws):
    """`[draws, n, n]` estimated inner products, each from other numbers."""

    @tf.function
    def estimate(position):
        found = project(projection, factors, position)
        return tf.add_n([inner(group, group) for group in found])

    return np.stack([estimate(tf.constant(at)) for at in range(draws)])


def exact(factors):
    gradients = flat.rows(factors)
    return (gradients @ tf.transpose(gradients)).numpy()


@each_projection
@pytest.mark.parametrize("kind", [*FACTORS, "all layers"])
def test_inner_products_are_unbiased(projection, kind):
    factors = ALL if kind == "all layers" else (FACTORS[kind],)
    found = estimates(projection, factors, 400)
    error = found.mean(axis=0) - exact(factors)
    deviation = found.std(axis=0, ddof=1) / math.sqrt(len(found))
    # Of some sixty intervals of four deviations, one in 250 runs would miss
    # by chance; the numbers are fixed.
    tolerance = 4 * deviation + 1e-4 * np.abs(exact(factors)).max()
    assert np.all(np.abs(error) < tolerance)


def moments(factors):
    """‖g‖²‖g'‖² and g·g' of all pairs, `[n, n]` both."""
    products = exact(factors)
    own = np.diag(products)
    return np.outer(own, own), products


def test_variance_of_the_gaussian_is_the_theory():
    projection = kt.GaussianProjection(16)
    lengths, products = moments(ALL)
    expected = (lengths + products**2) / projection.dim
    found = estimates(projection, ALL, 2000).var(axis=0, ddof=1)
    np.testing.assert_allclose(found, expected, rtol=0.2)


def test_variance_of_the_tensor_sketch_is_the_theory():
    projection = kt.TensorSketch(64)
    group = OuterFactors(normal(N, 1, 150), normal(N, 1, 90, seed=1))
    assert projection._convolves(group)
    x, c = moments((DenseGradients((group.inputs[:, 0],)),))
    delta, e = moments((DenseGradients((group.grads[:, 0],)),))
    expected = x * delta + c**2 * delta + x * e**2 + 3 * c**2 * e**2
    found = estimates(projection, (group,), 2000).var(axis=0, ddof=1)
    np.testing.assert_allclose(found, expected / projection.dim, rtol=0.25)


def test_variance_of_a_count_sketch_is_below_the_gaussians():
    projection = kt.TensorSketch(16)
    group = (DenseGradients((normal(N, 400),)),)
    lengths, products = moments(group)
    bound = (lengths + products**2) / projection.dim
    found = estimates(projection, group, 2000).var(axis=0, ddof=1)
    assert np.all(found < 1.1 * bound)
    assert np.all(found > 0.8 * bound)


def test_factored_noise_falls_with_the_root_of_dim():
    group = (OuterFactors(normal(N, 1, 60), normal(N, 1, 50, seed=1)),)
    small, large = (
        estimates(kt.FactoredProjection(dim), group, 600).std(axis=0)
        for dim in (16, 256)
    )
    # Of examples with themselves, where it is largest: sixteen times the
    # numbers, half the error. A Gaussian's would be a fourth.
    ratio = np.diag(small / large)
    assert np.all((ratio > 1.6) & (ratio < 3))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dim", [1, 7, 64, 1300])
def test_tensor_sketch_is_the_same_whether_or_not_the_kernel_is_made(dim, bias):
    group = OuterFactors(normal(N, 1, 40), normal(N, 1, 30, seed=1), bias)
    projection = kt.TensorSketch(dim, seed=5)
    whole = projection.sketch((group,))
    made = projection.sketch((materialize(group),))
    np.testing.assert_allclose(made, whole, rtol=1e-4, atol=1e-3)
    if projection._convolves(group):
        key = random.fold(random.root(5), 0, 0)
        spectrum = projection._spectrum(group, key)
        convolved = tf.signal.irfft(spectrum, [dim])
        np.testing.assert_allclose(convolved, whole, rtol=1e-4, atol=1e-3)


def test_tensor_sketch_chooses_by_cost():
    projection = kt.TensorSketch(64)

    def chosen(t, i, o):
        return projection._convolves(
            OuterFactors(tf.zeros([1, t, i]), tf.zeros([1, t, o]))
        )

    assert chosen(1, 300, 200)
    assert not chosen(1, 8, 8)  # fits as it is
    assert not chosen(200, 300, 200)  # as many transforms as positions


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("t", [1, 3])
def test_gaussian_is_the_same_whether_or_not_the_kernel_is_made(
    t, bias, monkeypatch
):
    monkeypatch.setattr(gaussian, "_BLOCK", 12 * 16)  # many blocks
    group = OuterFactors(normal(N, t, 9), normal(N, t, 7, seed=1), bias)
    projection = kt.GaussianProjection(12)
    np.testing.assert_allclose(
        projection.sketch((group,)),
        projection.sketch((materialize(group),)),
        rtol=1e-4,
        atol=1e-4,
    )


def matrix_of(projection, size):
    """Gᵀ `[p, d]`: the sketches of unit vectors."""
    return projection.sketch((DenseGradients((tf.eye(size),)),)).numpy()


def test_gaussian_entries_are_independent_and_normal(monkeypatch):
    monkeypatch.setattr(gaussian, "_BLOCK", 50 * 64)
    matrix = matrix_of(kt.GaussianProjection(50, seed=1), 600) * math.sqrt(50)
    assert abs(matrix.mean()) < 4 / math.sqrt(matrix.size)
    assert abs(matrix.var() - 1) < 4 * math.sqrt(2 / matrix.size)
    assert abs((matrix**4).mean() - 3) < 4 * math.sqrt(96 / matrix.size)
    blocks = matrix[:576].reshape(9, -1)
    correlation = np.corrcoef(blocks) - np.eye(9)
    assert np.abs(correlation).max() < 5 / math.sqrt(blocks.shape[1])


def test_rows_of_a_table_are_sketched_alike_wherever_they_occur():
    width, projection = 4, kt.GaussianProjection(6)
    grads = normal(1, 3, width)
    one = LookupFactors(tf.constant([[5, 2, 5]]), grads, vocabulary=10)
    parts = [
        projection.sketch(
            (LookupFactors(tf.constant([[row]]), part, vocabulary=10),)
        )
        for row, part in (
            (5, grads[:, :1] + grads[:, 2:]),
            (2, grads[:, 1:2]),
        )
    ]
    np.testing.assert_allclose(
        projection.sketch((one,)), tf.add_n(parts), rtol=1e-5
    )


@each_projection
def test_sketches_are_the_same_again_and_others_for_another_seed(projection):
    def sketch(projection, position=0):
        parts = tf.nest.flatten(project(projection, ALL, position))
        return np.concatenate([np.ravel(part) for part in parts])

    first = sketch(projection)
    np.testing.assert_array_equal(first, sketch(projection))
    other_seed = type(projection)(12, 4)
    if isinstance(projection, kt.FactoredProjection):
        other_seed = kt.FactoredProjection(12, 4, projection.joint)
    for other in (sketch(other_seed), sketch(projection, position=1)):
        assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", ["Gaussian", "factored", "tensor sketch"])
def test_like_layers_have_numbers_of_their_own(name):
    group = FACTORS["sequence"]
    first, both = (
        PROJECTIONS[name].sketch(groups) for groups in ((group,), (group,) * 2)
    )
    assert not np.allclose(2 * first, both)
    assert not np.allclose(first, both - first)


def test_double_precision_has_the_same_projection():
    wide = tf.nest.map_structure(
        lambda t: tf.cast(t, tf.float64) if t.dtype.is_floating else t, ALL
    )
    for name in ("Gaussian", "factored", "tensor sketch"):
        narrow = PROJECTIONS[name].sketch(ALL)
        found = PROJECTIONS[name].sketch(wide)
        assert found.dtype == tf.float64
        np.testing.assert_allclose(found, narrow, rtol=1e-4, atol=1e-4)


def test_what_fits_is_kept_exactly():
    group = (OuterFactors(normal(N, 1, 6), normal(N, 1, 4, seed=1)),)
    for projection in (kt.FactoredProjection(30), kt.TensorSketch(30)):
        sketch = projection.sketch(group)
        products = sketch @ tf.transpose(sketch)
        np.testing.assert_allclose(products, exact(group), rtol=1e-4)


@pytest.mark.parametrize(
    ("dim", "i", "o", "expected"),
    [
        (1024, 1600, 128, (32, 32)),
        (1000, 1600, 128, (31, 32)),
        (1024, 129, 10, (10, 102)),
        (1024, 9, 500, (113, 9)),
        (1, 50, 50, (1, 1)),
    ],
)
def test_the_root_of_dim_is_rounded_as_documented(dim, i, o, expected):
    assert kt.FactoredProjection(dim)._lengths(i, o) == expected


def test_sides_apart_take_less_space():
    group = OuterFactors(normal(N, 1, 300), normal(N, 1, 200))
    (found,) = kt.FactoredProjection(400, joint=False).sides((group,))
    assert found.inputs.shape == found.grads.shape == (N, 1, 20)


def tensors_within(graph):
    """Every tensor that a graph and the functions it calls make."""
    inside = list(graph._functions.values())
    yield from (t for op in graph.get_operations() for t in op.outputs)
    for function in inside:
        yield from tensors_within(function.graph)


def test_no_projection_makes_a_matrix_of_parameters_by_dim(monkeypatch):
    monkeypatch.setattr(gaussian, "_BLOCK", 64 * 256)
    dim, i, o = 64, 200, 90
    largest = {}
    for projection in (
        kt.GaussianProjection(dim),
        kt.FactoredProjection(dim),
        kt.TensorSketch(dim),
    ):
        spec = OuterFactors(tf.TensorSpec([2, 1, i]), tf.TensorSpec([2, 1, o]))
        step = tf.function(projection.sketch, input_signature=[(spec,)])
        graph = step.get_concrete_function().graph
        largest[projection] = max(
            tensor.shape.num_elements() or 0 for tensor in tensors_within(graph)
        )
    assert all(size <= 256 * dim for size in largest.values()), largest
    assert max(largest.values()) == 256 * dim  # a block of the Gaussian


@pytest.mark.parametrize("dim", [0, -3, 2.5, True, "8", None])
@pytest.mark.parametrize(
    "kind", [kt.GaussianProjection, kt.FactoredProjection, kt.TensorSketch]
)
def test_bad_dim_is_refused(kind, dim):
    with pytest.raises(
        ValueError, match=row("zero-dim", "`dim`...Received: dim=")
    ):
        kind(dim)


@pytest.mark.parametrize("seed", [-1, 0.5, 2**63, None])
def test_bad_seed_is_refused(seed):
    with pytest.raises(ValueError, match=r"`seed` should be a whole number"):
        kt.TensorSketch(8, seed)
