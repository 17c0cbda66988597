"""Optimizer-aware TracIn: what a gradient moves, and the sums of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.preconditioner import Preconditioner, diagonal
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


def mean_displacement(optimizer, impulse, steps):
    """The mean move of a unit of a small impulse, by least squares.

    200 gradients, each the same and a little noise, lead to a state; then
    others follow, with the impulse and without.

    Returns:
        The diagonal where the impulse is given, and the least squares slope.
    """
    random = np.random.default_rng(1)
    signal = random.normal(size=(500, 400)).astype("float32")
    variable = keras.Variable(random.normal(size=signal.shape))
    optimizer.build([variable])

    @tf.function
    def apply(gradient):
        optimizer.apply([gradient], [variable])

    for _ in range(200):
        noise = 0.05 * random.normal(size=signal.shape)
        apply(tf.constant(signal + noise, tf.float32))
    entries = diagonal(optimizer, variable).reshape(signal.shape)
    own = [variable, *optimizer.variables]
    state = [slot.numpy() for slot in own]
    unit = random.normal(size=signal.shape).astype("float32")
    ends = []
    for size in (impulse, 0.0):
        for slot, value in zip(own, state, strict=True):
            slot.assign(value)
        for step in range(steps):
            apply(tf.constant(signal + (size * unit if step == 0 else 0)))
        ends.append(variable.numpy().astype(float))
    moved = (ends[1] - ends[0]) / impulse
    expected = entries * unit
    rate = float(optimizer.learning_rate.numpy())
    return rate, np.sum(moved * expected) / np.sum(expected**2)


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        # As its weights' length changes, so does every later step a little.
        (lambda: keras.optimizers.Lamb(1e-5, **LONG), 6),
        (lambda: keras.optimizers.Lion(1e-4, beta_1=0.5, beta_2=0.8), 40),
        # Its square of gradients is a mean over the last ones only.
        (lambda: keras.optimizers.Adafactor(1e-3, clip_threshold=1e9), 1),
        (lambda: keras.optimizers.Adafactor(1.0, clip_threshold=1e9), 1),
    ],
)
def test_diagonal_with_a_norm_is_what_an_impulse_moves_on_average(make, steps):
    rate, slope = mean_displacement(make(), 0.1, steps)
    np.testing.assert_allclose(slope, rate, rtol=0.1)


@pytest.mark.parametrize("name", ["Lamb", "Lion", "Adafactor", "Adam"])
def test_diagonal_of_a_checkpoint_is_that_of_the_optimizer_then(tmp_path, name):
    model = build()
    model.compile(getattr(keras.optimizers, name)(0.01), model.loss)
    callback = kt.TracInCheckpoint(tmp_path)
    model.fit(*TRAIN, batch_size=8, epochs=2, callbacks=[callback], verbose=0)
    group = model.trainable_variables
    (own,) = Preconditioner(model).at(kt.TrainingRun(tmp_path)[-1], [group])
    for recorded, variable in zip(own, group, strict=True):
        live = diagonal(model.optimizer, variable)
        np.testing.assert_allclose(recorded, live, rtol=1e-6)


def lamb(slots, variable, checkpoint):
    moment, velocity = slots
    spread = np.sqrt(velocity / (1 - 0.999**checkpoint.step)) + 1e-7
    update = moment / (1 - 0.9**checkpoint.step) / spread
    length = np.linalg.norm(variable)
    return (length / np.linalg.norm(update) if length else 1.0) / spread


def adafactor(slots, variable, checkpoint):
    bound = checkpoint.learning_rate * np.sqrt(checkpoint.step)
    size = max(1e-3, np.sqrt(np.mean(variable**2))) / max(1, bound)
    return size / np.sqrt(slots[0])


@pytest.mark.parametrize(
    ("make", "names", "expected"),
    [
        (
            lambda: keras.optimizers.Lamb(0.05),
            ("_momentums", "_velocities"),
            lamb,
        ),
        (lambda: keras.optimizers.Adafactor(0.9), ("_v",), adafactor),
    ],
)
def test_every_checkpoint_has_the_norms_of_its_own_weights(
    make, names, expected, tmp_path
):
    model = build()
    model.compile(make(), model.loss)
    callback = kt.TracInCheckpoint(tmp_path)
    model.fit(*TRAIN, batch_size=8, epochs=3, callbacks=[callback], verbose=0)
    run, scores, own = kt.TrainingRun(tmp_path), 0.0, 0.0
    for checkpoint in run:
        twin = build()
        twin.compile(make(), twin.loss)
        twin.optimizer.build(twin.trainable_variables)
        twin.load_weights(checkpoint.path)
        diagonals = []
        for at, variable in enumerate(twin.trainable_variables):
            slots = [
                getattr(twin.optimizer, name)[at].numpy().astype(float)
                for name in names
            ]
            value = variable.numpy().astype(float)
            diagonals.append(np.ravel(expected(slots, value, checkpoint)))
        weights = checkpoint.learning_rate * np.concatenate(diagonals)
        train = gradients(checkpoint, *TRAIN)
        test = gradients(checkpoint, *TEST)
        scores = scores + (test * weights) @ train.T
        own = own + train**2 @ weights
    aware = kt.TracIn(model, TRAIN, run, optimizer_aware=True)
    found = aware.influence(TEST, verbose=0).scores
    np.testing.assert_allclose(found, scores, atol=1e-5 * np.abs(scores).max())
    found = aware.self_influence(verbose=0).scores
    np.testing.assert_allclose(found, own, rtol=1e-4)


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
    _, run = trained
    other = build()
    other.compile(keras.optimizers.Ftrl(), other.loss)
    with pytest.raises(ValueError, match=r"Received a model with .* 'Ftrl'"):
        kt.TracIn(other, TRAIN, run, optimizer_aware=True)
    other.compile(keras.optimizers.RMSprop(), other.loss)
    tracin = kt.TracIn(other, TRAIN, run, optimizer_aware=True)
    with pytest.raises(ValueError, match=r"expected the .* of RMSprop"):
        tracin.influence(TEST, verbose=0)
    with pytest.raises(ValueError, match="holds plain gradients"):
        kt.InfluenceIndex.build(
            aware,
            run.directory / "index",
            projection=kt.TensorSketch(8),
        )
