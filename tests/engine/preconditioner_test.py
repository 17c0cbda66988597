"""Optimizer-aware TracIn: what a gradient moves, and the sums of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.preconditioner import diagonal
from tests.methods.network import (
    TEST,
    TRAIN,
    assert_close,
    build,
    gradients,
)

LONG = {"beta_1": 0.3, "beta_2": 0.999999}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.01),
    "momentum": lambda: keras.optimizers.SGD(0.01, momentum=0.5),
    "nesterov": lambda: keras.optimizers.SGD(0.01, momentum=0.5, nesterov=True),
    "adam": lambda: keras.optimizers.Adam(0.01, **LONG),
    "amsgrad": lambda: keras.optimizers.Adam(0.01, amsgrad=True, **LONG),
    "nadam": lambda: keras.optimizers.Nadam(0.01, **LONG),
    "adamax": lambda: keras.optimizers.Adamax(0.01, **LONG),
    "adagrad": lambda: keras.optimizers.Adagrad(0.01),
    "rmsprop": lambda: keras.optimizers.RMSprop(
        0.01, rho=0.9999, momentum=0.5, centered=True
    ),
}


def displacements(make, impulse):
    """Where 200 random gradients and 30 of zero lead, with an impulse between.

    Returns:
        The diagonal, and the displacements with the impulse and without.
    """
    optimizer = make()
    variable = keras.Variable(np.zeros(4, "float32"))
    optimizer.build([variable])
    random = np.random.default_rng(0)
    scale = np.array([1, 2, 4, 8], "float32")

    @tf.function
    def apply(gradient):
        optimizer.apply([gradient], [variable])

    for _ in range(200):
        gradient = random.normal(size=4).astype("float32") * scale
        apply(tf.constant(gradient))
    found = diagonal(optimizer, variable)
    state = [slot.numpy() for slot in optimizer.variables]
    moved = []
    for size in (impulse, 0.0):
        variable.assign(np.zeros(4, "float32"))
        for slot, value in zip(optimizer.variables, state, strict=True):
            slot.assign(value)
        for step in range(30):
            gradient = size * scale if step == 0 else np.zeros(4)
            apply(tf.constant(gradient, tf.float32))
        moved.append(variable.numpy() / scale)
    return found, *moved


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_diagonal_is_what_an_impulse_moves_over_all_later_steps(name):
    found, moved, anyway = displacements(OPTIMIZERS[name], 0.1)
    np.testing.assert_allclose(found, (anyway - moved) / 0.001, rtol=0.03)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    model = build()
    callback = kt.TracInCheckpoint(directory)
    model.fit(*TRAIN, batch_size=8, epochs=2, callbacks=[callback], verbose=0)
    return model, kt.TrainingRun(directory)


@pytest.fixture(scope="module")
def expected(trained):
    """Scores, their scale, self-influence and plain scores, by definition."""
    _, run = trained
    scores, own_test, own_train, plain = 0.0, 0.0, 0.0, 0.0
    for checkpoint in run:
        model = build()
        model.optimizer.build(model.trainable_variables)
        model.load_weights(checkpoint.path)
        adam = model.optimizer
        second = np.concatenate([np.ravel(v) for v in adam._velocities])
        assert second.any()
        corrected = second / (1 - adam.beta_2**checkpoint.step)
        rate = checkpoint.learning_rate
        scale = np.sqrt(1 - adam.beta_2**checkpoint.step)
        weights = rate / (np.sqrt(corrected) + adam.epsilon / scale)
        train = gradients(checkpoint, *TRAIN)
        test = gradients(checkpoint, *TEST)
        scores = scores + (test * weights) @ train.T
        own_train = own_train + (train**2) @ weights
        plain = plain + rate * test @ train.T
        own_test = own_test + (test**2) @ weights
    return scores, np.sqrt(np.outer(own_test, own_train)), own_train, plain


@pytest.fixture(scope="module")
def aware(trained):
    model, run = trained
    return kt.TracIn(model, TRAIN, run, optimizer_aware=True)


def test_scores_are_products_under_the_recorded_second_moment(
    trained, aware, expected
):
    model, _ = trained
    before = [v.numpy() for v in model.optimizer.variables]
    found = aware.influence(TEST, verbose=0)
    assert_close(found.scores, *expected[:2])
    apart = np.abs(expected[3] - found.scores).max()
    assert apart > 0.1 * np.abs(found.scores).max()
    for one, other in zip(before, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_sum_of_queries_ranking_and_self_influence_use_the_same_products(
    aware, expected
):
    scores, scale, own, _ = expected
    summed = aware.influence(TEST, aggregate=True, verbose=0).scores
    np.testing.assert_allclose(
        summed[0], scores.sum(0), atol=1e-4 * scale.sum(0).max()
    )
    top = aware.top_k(TEST, k=3, verbose=0)
    np.testing.assert_array_equal(
        top.proponents.ids, np.argsort(-scores, axis=1)[:, :3]
    )
    found = aware.self_influence(verbose=0).scores
    np.testing.assert_allclose(found, own, rtol=1e-4)


def test_what_has_no_recorded_moment_is_refused(trained, aware):
    model, run = trained
    other = build()
    other.compile(keras.optimizers.Lion(), other.loss)
    with pytest.raises(ValueError, match=r"Received a model with .* 'Lion'"):
        kt.TracIn(other, TRAIN, run, optimizer_aware=True)
    other.compile(keras.optimizers.RMSprop(), other.loss)
    tracin = kt.TracIn(other, TRAIN, run, optimizer_aware=True)
    with pytest.raises(ValueError, match=r"expected the .* of RMSprop"):
        tracin.influence(TEST, verbose=0)
    with pytest.raises(ValueError, match="leave one of them out"):
        kt.TracIn(
            model,
            TRAIN,
            run,
            optimizer_aware=True,
            projection=kt.TensorSketch(8),
        )
    with pytest.raises(ValueError, match="holds plain gradients"):
        kt.InfluenceIndex.build(
            aware,
            run.directory / "index",
            projection=kt.TensorSketch(8),
        )
