"""EK-FAC against the Gauss-Newton matrix written out."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tracin as kt
from keras_tracin.curvature import kronecker
from keras_tracin.curvature.objective import GaussNewton
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.solvers import EKFAC
from keras_tracin.curvature.solvers.exact import as_matrix
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.losses.per_example import per_example_loss
from tests.curvature.networks import (
    CASES,
    CLASSES,
    COUNT,
    Scale,
    gauss_newton,
    softmax,
    tied,
)
from tests.error_rows import row
from tests.gradients.oracle import precision, sequential

DAMPING = 0.1


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


def fitted(*network):
    """EK-FAC's inverse and the Gauss-Newton matrix of the same variables."""
    operator = gauss_newton(*network)
    return EKFAC().prepare(Damped(operator, DAMPING)), as_matrix(operator)


def everything(inverse, size):
    return inverse(tf.eye(size, dtype=tf.float64)).value.numpy()


def test_a_linear_model_under_squared_error_is_inverted_exactly():
    model = sequential(
        (4,),
        layers.Dense(2, kernel_regularizer=keras.regularizers.L2(0.2)),
    )
    matrix = as_matrix(gauss_newton(model))
    # The bias is not regularised, which no Kronecker product can tell.
    plain = matrix - np.diag([0.4] * 8 + [0.0] * 2)
    model = sequential((4,), layers.Dense(2))
    inverse, matrix = fitted(model)
    np.testing.assert_allclose(matrix, plain)
    expected = np.linalg.inv(matrix + DAMPING * np.eye(10))
    np.testing.assert_allclose(everything(inverse, 10), expected, atol=1e-8)


@pytest.mark.parametrize(
    "equation", ["ab,bcd->acd", "ab,cdb->acd", "ab,cbd->adc"]
)
def test_a_kernel_may_store_its_axes_in_any_order(equation):
    layer = layers.EinsumDense(equation, (2, 3), bias_axes=equation[-2:])
    inverse, matrix = fitted(sequential((4,), layer, layers.Flatten()))
    expected = np.linalg.inv(matrix + DAMPING * np.eye(len(matrix)))
    np.testing.assert_allclose(
        everything(inverse, len(matrix)), expected, atol=1e-8
    )


def test_a_look_up_of_single_tokens_is_inverted_exactly():
    network = sequential(
        (1,), layers.Embedding(5, 3), layers.Flatten(), dtype="int32"
    )
    inverse, matrix = fitted(network, "mse", 5)
    assert [block.sides for block in inverse.blocks] == [(3,)]
    expected = np.linalg.inv(matrix + DAMPING * np.eye(len(matrix)))
    np.testing.assert_allclose(
        everything(inverse, len(matrix)), expected, atol=1e-8
    )


def test_a_regularised_kernel_adds_to_its_eigenvalues():
    layer = layers.Dense(
        2, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.2)
    )
    inverse, matrix = fitted(sequential((4,), layer))
    expected = np.linalg.inv(matrix + DAMPING * np.eye(8))
    np.testing.assert_allclose(everything(inverse, 8), expected, atol=1e-8)


def vocabulary():
    return sequential(
        (3,),
        layers.Embedding(5, 4),
        layers.Dense(3, "tanh"),
        layers.Dense(5, activation="softmax"),
        layers.GlobalAveragePooling1D(),
        dtype="int32",
    )


@pytest.mark.parametrize("build", [tied, vocabulary])
def test_the_side_of_a_vocabulary_keeps_its_diagonal(build, monkeypatch):
    monkeypatch.setattr(kronecker, "_LARGE_SIDE", 4)
    monkeypatch.setattr(kronecker, "_TIMES", 1)
    network = build()
    operator = gauss_newton(network, "mse", 5)
    inverse = EKFAC("exact").prepare(Damped(operator, DAMPING))
    matrix = as_matrix(operator)
    assert all(5 not in block.sides for block in inverse.blocks)
    assert any(block.sides == (4,) for block in inverse.blocks)
    # The eigenvalues are the exact second moments in each basis.
    for block, basis, values in zip(
        inverse.blocks, inverse.bases, inverse.eigenvalues, strict=True
    ):
        of = slice(block.start, block.start + block.size)
        left, right = kronecker.bases_of(block, basis)
        left = np.eye(block.rows) if left is None else left
        right = np.eye(block.columns) if right is None else right
        vectors = np.kron(left, right)
        expected = np.diag(vectors.T @ matrix[of, of] @ vectors)
        np.testing.assert_allclose(np.ravel(values), expected + DAMPING)


@pytest.mark.parametrize(
    "layer", [Scale, layers.PReLU], ids=["a user's", "PReLU"]
)
def test_a_small_variable_of_a_layer_without_a_rule_has_its_exact_block(layer):
    frozen = layers.Dense(CLASSES, "softmax", trainable=False)
    network = sequential((4,), layer(), frozen)
    inverse, matrix = fitted(network, "sparse_categorical_crossentropy")
    blocks = np.kron(np.eye(len(matrix) // 4), np.ones((4, 4)))
    expected = np.linalg.inv(matrix * blocks + DAMPING * np.eye(len(matrix)))
    np.testing.assert_allclose(
        everything(inverse, len(matrix)), expected, atol=1e-8
    )


class Positions(keras.layers.Layer):
    """Adds a vector for each position, as keras.io's transformer does."""

    def __init__(self):
        super().__init__()
        self.tokens = layers.Embedding(6, 3)
        self.positions = layers.Embedding(4, 3)

    def call(self, inputs):
        positions = keras.ops.arange(keras.ops.shape(inputs)[-1])
        return self.tokens(inputs) + self.positions(positions)


def test_positions_and_what_has_no_rule_are_inverted_with_the_rest():
    network = sequential(
        (4,),
        Positions(),
        Scale(),
        layers.Dense(3),
        layers.PReLU(shared_axes=[1]),
        layers.Flatten(),
        softmax(),
        dtype="int32",
    )
    inverse, matrix = fitted(network, "sparse_categorical_crossentropy", 6)
    eigenvalues = sum(np.sum(values) for values in inverse.eigenvalues)
    undamped = eigenvalues - DAMPING * len(matrix)
    np.testing.assert_allclose(undamped, np.trace(matrix), rtol=1e-6)


@pytest.mark.parametrize(("build", "tokens"), CASES.values(), ids=CASES)
def test_it_has_the_trace_of_gauss_newton_and_nearly_its_scores(build, tokens):
    loss = "sparse_categorical_crossentropy"
    inverse, matrix = fitted(build(), loss, tokens)
    size = len(matrix)
    # An orthonormal basis leaves the sum of all eigenvalues as it was: every
    # pass of one output each gives the second moments exactly.
    eigenvalues = sum(np.sum(values) for values in inverse.eigenvalues)
    undamped = eigenvalues - DAMPING * size
    np.testing.assert_allclose(undamped, np.trace(matrix), rtol=1e-6)
    found = everything(inverse, size)
    np.testing.assert_allclose(found, found.T, atol=1e-8)
    exact = np.linalg.inv(matrix + DAMPING * np.eye(size))
    pairs = np.random.default_rng(1).normal(size=(2, 40, size)) @ matrix
    scores = [pairs[0] @ of @ pairs[1].T for of in (found, exact)]
    assert np.corrcoef(*map(np.ravel, scores))[0, 1] > 0.8


def test_it_serves_the_three_calls():
    model = CASES["dense"][0]()
    model.compile(loss="sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(COUNT, 4)), rng.integers(CLASSES, size=COUNT)

    def influence(**options):
        return kt.InfluenceFunctions(model, data, damping=0.1, **options)

    def scores(method):
        with pytest.warns(UserWarning, match="not converged"):
            return method.influence(data, verbose=0).scores

    method = influence(curvature="ekfac")
    approximate = scores(method)
    own = method.self_influence(verbose=0).scores
    np.testing.assert_allclose(own, np.diag(approximate), rtol=1e-6)
    exact = influence(curvature="gauss_newton", solver=kt.Exact())
    pair = approximate, scores(exact)
    assert np.corrcoef(*map(np.ravel, pair))[0, 1] > 0.9
    relative = scores(influence(curvature="ekfac", relative="loss"))
    np.testing.assert_allclose(relative, approximate / np.sqrt(own), rtol=1e-6)
    by_solver = influence(solver=kt.EKFAC())
    np.testing.assert_array_equal(scores(by_solver), approximate)


@pytest.mark.parametrize(
    ("curvature", "solver", "message"),
    [
        ("ekfac", kt.CG(), row("ekfac-solver", "takes no other solver...CG")),
        (
            "hessian",
            kt.EKFAC(),
            row("ekfac-hessian", "curvature='hessian'; expected"),
        ),
    ],
)
def test_curvature_and_solver_have_to_go_together(curvature, solver, message):
    model = CASES["dense"][0]()
    model.compile(loss="mse")
    with pytest.raises(ValueError, match=message):
        kt.InfluenceFunctions(
            model,
            (np.ones((2, 4)), np.ones((2, 3))),
            damping=0.1,
            curvature=curvature,
            solver=solver,
        )


def test_random_draws_have_the_curvature_in_expectation():
    operator = gauss_newton(
        CASES["dense"][0](), "sparse_categorical_crossentropy"
    )
    damped = Damped(operator, DAMPING)

    def diagonal(**options):
        inverse = EKFAC(**options).prepare(damped)
        return np.concatenate([np.ravel(v) for v in inverse.eigenvalues])

    exact = diagonal(draws="exact")
    np.testing.assert_array_equal(exact, diagonal())  # of few examples
    few = [diagonal(draws=2, seed=seed) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(few[0], few[1])
    assert np.abs(few[0] - few[2]).max() > 0.01 * exact.max()
    many = diagonal(draws=500)
    np.testing.assert_allclose(many.sum(), exact.sum(), rtol=0.02)


def test_random_draws_count_the_weights_of_outputs_and_examples():
    rng = np.random.default_rng(0)
    inputs = keras.Input((3,))
    hidden = layers.Dense(4, "tanh")(inputs)
    outputs = {
        "kind": layers.Dense(CLASSES, name="kind")(hidden),
        "size": layers.Dense(2, name="size")(hidden),
    }
    model = keras.Model(inputs, outputs)
    kind = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(
        loss={"kind": kind, "size": "mse"},
        loss_weights={"kind": 0.3, "size": 2.0},
    )
    x, weights = rng.normal(size=(6, 3)), rng.uniform(0.2, 3, size=6)
    y = {
        "kind": rng.integers(CLASSES, size=6),
        "size": rng.normal(size=(6, 2)),
    }
    examples, loss = open_examples((x, y, weights)), per_example_loss(model)
    values = [variable.value for variable in model.trainable_variables]
    expected = 0.0
    for example, weight in zip(x, weights, strict=True):
        with tf.GradientTape(persistent=True) as tape:
            found = model(example[np.newaxis])
        shares = tf.nn.softmax(found["kind"][0]).numpy()
        bends = {
            "kind": 0.3 * (np.diag(shares) - np.outer(shares, shares)),
            "size": 2.0 * np.eye(2),  # a mean of two squares
        }
        for name, bend in bends.items():
            parts = tape.jacobian(
                found[name],
                values,
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
                experimental_use_pfor=False,
            )
            wide = np.concatenate(
                [np.reshape(part, (len(bend), -1)) for part in parts], axis=1
            )
            expected += weight / len(x) * np.trace(wide.T @ bend @ wide)
    functions = GradientFunctions(model, loss, examples.first(2).data)
    flat = [variable for group in functions.variables for variable in group]
    operator = GaussNewton(model, loss, examples, flat)
    inverse = EKFAC(draws=200).prepare(Damped(operator, DAMPING))
    eigenvalues = sum(np.sum(part) for part in inverse.eigenvalues)
    undamped = eigenvalues - DAMPING * operator.size
    np.testing.assert_allclose(undamped, expected, rtol=0.03)


def test_draws_that_cannot_be_are_refused():
    for draws in (0, 1.5, "all", True):
        with pytest.raises(ValueError, match=row("ekfac-draws")):
            EKFAC(draws)
    wide = gauss_newton(sequential((2,), layers.Dense(20)))
    with pytest.raises(ValueError, match=row("ekfac-exact", "[20]")):
        EKFAC("exact").prepare(Damped(wide, DAMPING))


def _of_the_largest(y, y_pred):
    """A loss of all outputs together, and not of a softmax."""
    return tf.square(tf.reduce_logsumexp(y_pred, axis=-1))


def _of_all_positions(y, y_pred):
    total = tf.reduce_sum(y_pred, axis=1, keepdims=True)
    return tf.square(total[..., 0]) * tf.ones_like(y_pred[..., 0])


@pytest.mark.parametrize(
    ("shape", "loss"),
    [((600,), _of_the_largest), ((4, 3), _of_all_positions)],
    ids=["very many outputs", "positions"],
)
def test_losses_that_mix_outputs_are_refused(shape, loss):
    size = int(np.prod(shape))
    model = sequential((2,), layers.Dense(size), layers.Reshape(shape))
    keras.utils.set_random_seed(0)
    model.compile(loss=loss)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(5, 2)), rng.normal(size=(5, *shape))
    method = kt.InfluenceFunctions(model, data, damping=0.1, curvature="ekfac")
    found = f"outputs of [{shape[-1]}] entries"
    with pytest.raises(ValueError, match=row("ekfac-outputs", found)):
        method.influence(data, verbose=0)


def test_a_wide_softmax_has_the_trace_of_gauss_newton():
    network = sequential((2,), layers.Dense(600, "softmax"))
    operator = gauss_newton(network, "sparse_categorical_crossentropy")
    inverse = EKFAC(draws=20).prepare(Damped(operator, DAMPING))
    eigenvalues = sum(np.sum(values) for values in inverse.eigenvalues)
    x = np.concatenate(
        [
            np.asarray(operator.examples.first(COUNT).data[0]),
            np.ones((COUNT, 1)),
        ],
        axis=1,
    )
    p = network.predict(x[:, :-1], verbose=0)
    trace = np.mean(np.sum(x**2, 1) * (1 - np.sum(p**2, 1)))
    undamped = eigenvalues - DAMPING * operator.size
    np.testing.assert_allclose(undamped, trace, rtol=0.02)
