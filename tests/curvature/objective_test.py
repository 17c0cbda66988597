"""Curvature of a network's objective, against whole matrices in float64."""

import dataclasses
import functools
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.curvature import mean_loss
from keras_tracin.curvature.objective import GaussNewton, Hessian
from keras_tracin.curvature.operators import Damped, matvec
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.execution import Execution
from keras_tracin.losses.per_example import per_example_loss
from tests.curvature import oracle
from tests.error_rows import row
from tests.gradients.oracle import precision, randomize, sequential

COUNT, CLASSES = 5, 3
L2 = keras.regularizers.L2(0.03)


@pytest.fixture(autouse=True, scope="module")
def _double_precision():
    with precision("float64"):
        yield


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and the classes of its inputs where they are tokens."""

    build: Callable[[], keras.Model]
    tokens: int = 0
    loss: str = "sparse_categorical_crossentropy"


def softmax():
    return layers.Dense(CLASSES, activation="softmax")


DENSE, RECURRENCE = "dense with a regulariser", "embedding and recurrence"
CASES = {
    DENSE: Case(
        lambda: sequential(
            (4,),
            layers.Dense(3, "tanh", kernel_regularizer=L2),
            softmax(),
        )
    ),
    "convolution and statistics": Case(
        lambda: sequential(
            (5, 5, 1),
            layers.Conv2D(2, 3, activation="gelu"),
            layers.MaxPooling2D(2),
            layers.BatchNormalization(),
            layers.Flatten(),
            softmax(),
        )
    ),
    RECURRENCE: Case(
        lambda: sequential(
            (3,),
            layers.Embedding(5, 2),
            layers.SimpleRNN(2),
            softmax(),
            dtype="int32",
        ),
        tokens=5,
    ),
    "regression": Case(
        lambda: sequential(
            (3,), layers.Dense(4, "tanh"), layers.Dense(2, use_bias=False)
        ),
        loss="mse",
    ),
}
PENALTY = {Hessian: 0.5, GaussNewton: 0.0}


def made(case):
    """A float64 model with its per-example loss, and weighted data."""
    rng = np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    model = case.build()
    model.compile(loss=case.loss)
    randomize(model)
    shape = (COUNT, *model.input_shape[1:])
    x = (
        rng.integers(case.tokens, size=shape)
        if case.tokens
        else (rng.normal(size=shape))
    )
    y = rng.integers(CLASSES, size=COUNT)
    if case.loss == "mse":
        y = rng.normal(size=(COUNT, 2))
    weight = rng.uniform(0.5, 2.0, size=COUNT)
    return model, per_example_loss(model), (x, y, weight)


def operator(kind, model, loss, data, **options):
    examples = open_examples(data)
    return kind(model, loss, examples, model.trainable_variables, **options)


def everything(of) -> np.ndarray:
    """The operator as a matrix."""
    return of.matmat(tf.eye(of.size, dtype=of.dtype)).numpy()


@functools.cache
def make_dense(kind):
    """A small network's operator, traced once for all tests, and its parts."""
    model, loss, data = made(CASES[DENSE])
    of = operator(kind, model, loss, data, penalty=PENALTY[kind])
    return of, model, loss, data


def make_case(kind, name):
    """A case's operator, and what it was made of."""
    if name == DENSE:
        return make_dense(kind)
    model, loss, data = made(CASES[name])
    of = operator(kind, model, loss, data, penalty=PENALTY[kind])
    return of, model, loss, data


@pytest.mark.parametrize("name", CASES)
def test_the_hessian_is_that_of_mean_loss_and_regularisers(name):
    found, model, loss, data = make_case(Hessian, name)
    expected = oracle.hessian(
        model, loss, data, model.trainable_variables, penalty=0.5
    )
    scale = np.abs(expected).max()
    np.testing.assert_allclose(everything(found), expected, atol=1e-9 * scale)


def test_one_vector_is_multiplied_as_several_are():
    hessian, *_ = make_dense(Hessian)
    vector = np.random.default_rng(1).normal(size=hessian.size)
    expected = everything(hessian) @ vector
    np.testing.assert_allclose(matvec(hessian, vector), expected, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gauss_newton_bends_the_loss_alone(name):
    of, model, loss, data = make_case(GaussNewton, name)
    z = model
    by_z = loss
    if name != "regression":
        head = model.layers[-1]
        flat = keras.Sequential([*model.layers[:-1]])

        def z(x, training):
            return flat(x, training=training) @ head.kernel + head.bias

        def by_z(y, logits, weight):
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            return losses * weight

    variables = model.trainable_variables
    expected = oracle.gauss_newton(model, by_z, data, variables, z)
    found = everything(of)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, atol=1e-9 * scale)
    assert np.linalg.eigvalsh(found).min() > -1e-9 * scale


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_vectors_side_by_side_or_in_turn_are_the_same(kind, monkeypatch):
    of, model, loss, data = make_dense(kind)
    vectors = np.random.default_rng(1).normal(size=(5, 27))
    beside = of.matmat(vectors)
    options = {"penalty": PENALTY[kind]}
    monkeypatch.setattr(mean_loss, "_SIDE_BY_SIDE_AT_ONCE", 2 * COUNT * 27)
    pairs = operator(kind, model, loss, data, **options).matmat(vectors)
    monkeypatch.setattr(mean_loss, "_SIDE_BY_SIDE", 0)
    in_turn = operator(kind, model, loss, data, **options).matmat(vectors)
    np.testing.assert_allclose(pairs, beside, rtol=1e-10)
    np.testing.assert_allclose(in_turn, beside, rtol=1e-10)


def test_batches_do_not_matter(monkeypatch):
    whole, model, loss, data = make_dense(Hessian)
    vectors = np.random.default_rng(1).normal(size=(3, 27))
    expected = whole.matmat(vectors), whole.gradient()
    small = Execution(memory_limit=1, batch_sizes=(2, 2))
    monkeypatch.setattr(mean_loss.MeanLossCurvature, "_execution", small)
    pieces = operator(
        Hessian, model, loss, data, penalty=PENALTY[Hessian], memory_limit=1
    )
    received = pieces.matmat(vectors), pieces.gradient()
    for small, large in zip(received, expected, strict=True):
        np.testing.assert_allclose(small, large, rtol=1e-10)


def test_a_sample_is_unbiased_and_all_examples_are_the_operator():
    whole, *_ = make_dense(Hessian)
    vector = np.random.default_rng(1).normal(size=(1, 27))
    expected = whole.matmat(vector)[0]
    rng = np.random.default_rng(2)
    np.testing.assert_allclose(
        whole.sample(rng, COUNT).matmat(vector)[0], expected, rtol=1e-10
    )
    draws = np.stack(
        [whole.sample(rng, 2).matmat(vector)[0] for _ in range(400)]
    )
    error = draws.mean(axis=0) - expected
    spread = draws.std(axis=0) / np.sqrt(len(draws))
    assert np.all(np.abs(error) < 5 * spread)
    assert np.all(spread > 0)


def test_the_gradient_is_the_objectives():
    of, model, loss, data = make_dense(Hessian)
    found = operator(Hessian, model, loss, data, penalty=0).gradient()
    variables = model.trainable_variables
    expected = oracle.gradient(model, loss, data, variables)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    kernel = model.layers[0].kernel.numpy().ravel()
    both = of.gradient()
    added = np.zeros(len(expected))
    added[: len(kernel)] = PENALTY[Hessian] * 2 * 0.03 * kernel
    np.testing.assert_allclose(both - found, added, atol=1e-12)


def test_damping_is_added_to_every_eigenvalue():
    plain, *_ = make_dense(Hessian)
    found = everything(Damped(plain, 0.25)) - everything(plain)
    np.testing.assert_allclose(found, 0.25 * np.eye(27), atol=1e-12)
    sampled = Damped(plain, 0.25).sample(np.random.default_rng(0), COUNT)
    np.testing.assert_allclose(
        everything(sampled), everything(Damped(plain, 0.25)), atol=1e-12
    )


@pytest.mark.parametrize("damping", [-1e-3, float("nan"), float("inf")])
def test_bad_damping_is_refused(damping):
    of, *_ = make_dense(Hessian)
    with pytest.raises(ValueError, match=row("damping")):
        Damped(of, damping)


def test_some_of_the_variables_have_a_block_of_the_matrix():
    of, model, loss, data = make_dense(Hessian)
    whole = everything(of)
    examples = open_examples(data)
    head = model.layers[-1].trainable_variables
    block = everything(Hessian(model, loss, examples, head))
    np.testing.assert_allclose(block, whole[-12:, -12:], atol=1e-12)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_a_layer_before_a_rounding_is_refused(kind):
    model = sequential(
        (3,),
        layers.Dense(2, name="lost"),
        layers.Lambda(lambda x: tf.cast(tf.cast(x, tf.int32), x.dtype)),
        layers.Dense(1),
    )
    model.compile(loss="mse")
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4, 3)), rng.normal(size=(4, 1))
    refused = operator(kind, model, per_example_loss(model), data)
    with pytest.raises(
        ValueError, match=row("no-gradient", "lost/kernel...layers=")
    ):
        refused.matmat(np.ones((2, refused.size)))


def test_half_precision_is_refused():
    model = sequential((3,), layers.Dense(1, dtype="mixed_float16"))
    data = np.ones((2, 3), "float32"), np.ones((2, 1), "float32")
    with pytest.raises(ValueError, match=row("half-precision")):
        operator(Hessian, model, lambda *_: None, data)


@pytest.mark.parametrize("kind", [Hessian, GaussNewton])
def test_replicas_do_not_matter(kind):
    alone, _, _, data = make_dense(kind)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = CASES[DENSE].build()
        model.compile(loss="sparse_categorical_crossentropy")
    randomize(model)
    options = {"penalty": PENALTY[kind], "strategy": strategy}
    spread = operator(kind, model, per_example_loss(model), data, **options)
    vectors = np.random.default_rng(1).normal(size=(3, alone.size))
    for received, expected in (
        (spread.matmat(vectors), alone.matmat(vectors)),
        (spread.gradient(), alone.gradient()),
    ):
        np.testing.assert_allclose(received, expected, rtol=1e-10)


def test_running_changes_nothing_in_the_model():
    model, loss, data = made(Case(lambda: sequential((4,), softmax())))
    before = model.get_weights()
    operator(Hessian, model, loss, data).matmat(np.ones((2, 15)))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
