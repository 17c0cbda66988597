"""damping="auto": one over the sum of the rates, times what gradients count."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from tests.error_rows import row

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
EPOCHS, STEPS = 3, 5


def trained(optimizer, directory, reduction="sum_over_batch_size"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    model.compile(optimizer, loss)
    recorder = kt.TracInCheckpoint(directory)
    model.fit(
        X, Y, batch_size=8, epochs=EPOCHS, verbose=0, callbacks=[recorder]
    )
    return model


def test_it_is_one_over_the_sum_of_the_rates(tmp_path):
    model = trained(keras.optimizers.SGD(0.1), tmp_path)
    expected = 1 / (0.1 * STEPS * EPOCHS)
    for options in ({}, {"run": tmp_path}):
        method = kt.InfluenceFunctions(model, (X, Y), **options)
        np.testing.assert_allclose(method.damping, expected, rtol=1e-6)
    part = kt.InfluenceFunctions(
        model, (X, Y), run=kt.TrainingRun(tmp_path)[2:]
    )
    # The steps before a selected checkpoint count all the same.
    np.testing.assert_allclose(part.damping, expected, rtol=1e-6)


def test_a_schedule_and_a_momentum_count(tmp_path):
    schedule = keras.optimizers.schedules.InverseTimeDecay(0.2, 1, 0.5)
    model = trained(keras.optimizers.SGD(schedule, momentum=0.9), tmp_path)
    rates = [0.2 / (1 + 0.5 * step) for step in range(STEPS * EPOCHS)]
    for options in ({}, {"run": tmp_path}):
        method = kt.InfluenceFunctions(model, (X, Y), **options)
        np.testing.assert_allclose(method.damping, 0.1 / sum(rates), rtol=1e-5)


def test_a_sum_over_the_batch_moves_the_weights_further(tmp_path):
    model = trained(keras.optimizers.SGD(0.1), tmp_path, "sum")
    method = kt.InfluenceFunctions(model, (X, Y), batch_size=8)
    np.testing.assert_allclose(
        method.damping, 1 / (8 * 0.1 * STEPS * EPOCHS), rtol=1e-6
    )
    with pytest.raises(ValueError, match="batch_size="):
        kt.InfluenceFunctions(model, (X, Y))


def test_adam_divides_gradients_by_their_size(tmp_path):
    model = trained(keras.optimizers.Adam(0.01), tmp_path)
    (velocity, bias) = (np.asarray(v) for v in model.optimizer._velocities)
    correction = np.sqrt(1 - 0.999 ** (STEPS * EPOCHS))
    entries = np.concatenate([velocity.ravel(), bias])
    # Keras adds ε to the moment before its correction.
    mean = np.mean(correction / (np.sqrt(entries) + 1e-7))
    method = kt.InfluenceFunctions(model, (X, Y))
    np.testing.assert_allclose(
        method.damping, 1 / (0.01 * STEPS * EPOCHS * mean), rtol=1e-4
    )
    # A run knows the moments at each checkpoint, which were smaller before.
    of_run = kt.InfluenceFunctions(model, (X, Y), run=tmp_path).damping
    assert method.damping < 10 * of_run < 100 * method.damping


def test_scores_are_those_of_the_number(tmp_path):
    model = trained(keras.optimizers.SGD(0.1), tmp_path)
    auto = kt.InfluenceFunctions(model, (X, Y))
    assert auto.solver == kt.EKFAC()
    given = kt.InfluenceFunctions(
        model, (X, Y), damping=auto.damping, curvature="ekfac"
    )
    scores = []
    for method in (auto, given):
        with pytest.warns(UserWarning, match="not converged"):
            scores.append(method.influence((X[:3], Y[:3]), verbose=0).scores)
    np.testing.assert_array_equal(*scores)


def test_layers_that_were_frozen_in_training_have_no_damping():
    model = keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(3, trainable=False, name="frozen"),
            keras.layers.Dense(2),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(X, Y, verbose=0)
    model.layers[0].trainable = True
    with pytest.raises(ValueError, match=row("damping-auto-variables")):
        kt.InfluenceFunctions(model, (X, Y), layers="frozen").influence((X, Y))


def test_training_that_is_not_known_is_refused(tmp_path):
    model = trained(keras.optimizers.SGD(0.1), tmp_path)
    path = tmp_path / "epoch.weights.h5"
    model.save_weights(path)
    adopted = kt.TrainingRun.from_weights([path], learning_rates=0.1)
    with pytest.raises(ValueError, match=row("damping-auto-rates")):
        _ = kt.InfluenceFunctions(model, (X, Y), run=adopted).damping
    model.compile("sgd", model.loss)
    with pytest.raises(ValueError, match=row("damping-auto")):
        kt.InfluenceFunctions(model, (X, Y)).influence((X, Y), verbose=0)
    model.compile(keras.optimizers.Ftrl(), model.loss)
    with pytest.raises(ValueError, match=row("damping-auto-optimizer")):
        _ = kt.InfluenceFunctions(model, (X, Y)).damping
