"""A whole TracIn run under each precision policy, against float64."""

import contextlib

import keras
import numpy as np
import pytest
from keras import layers

import keras_tracin as kt
from tests.gradients.oracle import jacobian, precision

NUM_TRAIN, NUM_TEST, EPOCHS, RATE = 40, 6, 2, 0.1
# Of √(s_ii s_jj). A gradient passes through a handful of roundings, of half
# the distance between 1 and the next number each, on either side.
TOLERANCE = {
    "mixed_float16": 24 * 2.0**-11,
    "mixed_bfloat16": 24 * 2.0**-8,
    "float32": 1e-4,
    "float64": 1e-6,  # scores are kept in float32
}


def examples(count, seed):
    """Inputs with eight bits, which every format has."""
    rng = np.random.default_rng(seed)
    x = np.round(8 * rng.normal(size=(count, 5, 4))) / 8
    return x, rng.integers(0, 3, count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)


@contextlib.contextmanager
def under(policy):
    """New layers and losses have this policy."""
    with precision("float64" if policy == "float64" else "float32"):
        keras.config.set_dtype_policy(policy)
        yield


def make_model():
    keras.utils.set_random_seed(0)
    last = keras.config.floatx()
    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            layers.Conv1D(6, 2, activation="tanh"),
            layers.LayerNormalization(),
            layers.GlobalAveragePooling1D(),
            layers.Dense(5, activation="tanh"),
            layers.Dense(3, dtype=last),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(RATE), loss)
    return model


def crossentropy(y, logits, sample_weight):
    return keras.ops.sparse_categorical_crossentropy(
        y, logits, from_logits=True
    )


def rows_at(weights):
    """Gradients of queries and of training examples, `[m, p]` and `[n, p]`."""
    with under("float64"):
        twin = make_model()
        twin.set_weights(weights)
        return [
            jacobian(
                twin, (*data, None), twin.trainable_variables, crossentropy
            )
            for data in (TEST, TRAIN)
        ]


@pytest.fixture(scope="module", params=TOLERANCE)
def case(request, tmp_path_factory):
    """The policy, its `TracIn`, and the oracle's scores."""
    policy = request.param
    directory = tmp_path_factory.mktemp(policy) / "run"
    with under(policy):
        model = make_model()
        model.fit(
            *TRAIN,
            batch_size=8,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[kt.TracInCheckpoint(directory)],
        )
        run = kt.TrainingRun(directory)
        tracin = kt.TracIn(model, TRAIN, run)
        assert len(run) == EPOCHS
        influence, norms, queries = 0.0, 0.0, 0.0
        for checkpoint in run:
            assert checkpoint.learning_rate == pytest.approx(RATE)
            model.load_weights(checkpoint.path)
            test, train = rows_at(model.get_weights())
            influence += checkpoint.learning_rate * test @ train.T
            norms += checkpoint.learning_rate * np.sum(train**2, axis=1)
            queries += checkpoint.learning_rate * np.sum(test**2, axis=1)
        yield policy, tracin, influence, norms, np.sqrt(queries)


def assert_close(found, expected, scale, policy):
    assert np.all(scale > 0)
    assert found.shape == expected.shape
    error = np.abs(found.astype("float64") - expected) / scale
    assert error.max() < TOLERANCE[policy], f"{error.max():.1e}"


def test_scores_are_those_of_float64(case):
    policy, tracin, influence, norms, lengths = case
    found = tracin.influence(TEST, verbose=0)
    scale = np.outer(lengths, np.sqrt(norms))
    assert_close(found.scores, influence, scale, policy)


def test_self_influence_is_that_of_float64(case):
    policy, tracin, _, norms, _ = case
    found = tracin.self_influence(verbose=0)
    assert_close(found.scores, norms, norms, policy)


def test_the_strongest_are_those_of_float64(case):
    policy, tracin, influence, norms, lengths = case
    found = tracin.top_k(TEST, 5, verbose=0)
    for side, sign in ((found.proponents, 1), (found.opponents, -1)):
        best = sign * np.sort(sign * influence, axis=1)[:, ::-1][:, :5]
        scale = np.outer(lengths, np.full(5, np.sqrt(norms.max())))
        assert_close(side.scores, best, scale, policy)
        own = np.take_along_axis(influence, side.ids, axis=1)
        assert_close(side.scores, own, scale, policy)
