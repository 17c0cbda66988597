"""Scores under a strategy are those of one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from tests.error_rows import row
from tests.strategies import mirrored

NUM_TRAIN, NUM_TEST, CLASSES = 13, 3, 4


def build():
    """A network with a rule, statistics and the fallback."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.BatchNormalization(),
            keras.layers.PReLU(),
            keras.layers.Dense(CLASSES),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.5), loss)
    return model


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)


def scores_of(model, run, strategy):
    tracin = kt.TracIn(model, TRAIN, run, strategy=strategy)
    return (
        tracin.influence(TEST, verbose=0).scores,
        tracin.influence(TEST, aggregate=True, verbose=0).scores,
        tracin.self_influence(verbose=0).scores,
        tracin.top_k(TEST, 4, verbose=0).proponents.ids,
    )


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A run, its scores on one device, and self-influence of the queries."""
    model = build()
    directory = tmp_path_factory.mktemp("single")
    callback = kt.TracInCheckpoint(directory)
    model.fit(*TRAIN, batch_size=4, epochs=2, callbacks=[callback], verbose=0)
    queries = kt.TracIn(model, TEST, directory).self_influence(verbose=0)
    return directory, scores_of(model, directory, None), queries.scores


@pytest.mark.parametrize(
    "strategy",
    [
        lambda: mirrored(4),
        lambda: tf.distribute.OneDeviceStrategy("CPU:1"),
    ],
    ids=["four replicas", "another device"],
)
def test_scores_do_not_depend_on_the_replicas(single, strategy):
    """And the model is afterwards as it was, on each of them."""
    directory, (scores, summed, own, ids), of_queries = single
    strategy = strategy()
    with strategy.scope():
        model = build()
    before = model.get_weights()
    found = scores_of(model, directory, strategy)
    scale = np.sqrt(np.outer(of_queries, own))
    assert np.max(np.abs(found[0] - scores) / scale) < 1e-5
    np.testing.assert_allclose(found[1], summed, atol=1e-5 * scale.max())
    np.testing.assert_allclose(found[2], own, rtol=1e-5)
    np.testing.assert_array_equal(found[3], ids)
    for variable, value in zip(model.weights, before, strict=True):
        for replica in strategy.experimental_local_results(variable.value):
            np.testing.assert_array_equal(replica, value)


@pytest.mark.filterwarnings("ignore:The model has not converged")
def test_ekfac_measures_examples_alike_on_four_replicas(single):
    run = kt.TrainingRun(single[0])
    strategy = mirrored(4)
    with strategy.scope():
        on_replicas = build()

    def found(model, strategy):
        options = {"run": run, "damping": 0.1, "strategy": strategy}
        method = kt.InfluenceFunctions(model, TRAIN, **options)
        relative = kt.InfluenceFunctions(
            model, TRAIN, relative="loss", **options
        )
        return (
            method.self_influence(verbose=0).scores,
            relative.influence(TEST, verbose=0).scores,
        )

    pairs = zip(found(on_replicas, strategy), found(build(), None), strict=True)
    for value, expected in pairs:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(value, expected, 1e-4, 1e-5 * scale)


def test_a_run_recorded_under_a_strategy_serves_one_device(tmp_path):
    strategy = mirrored(2)
    with strategy.scope():
        model = build()
    callback = kt.TracInCheckpoint(tmp_path)
    # Keras cannot train a BatchNormalization on a batch of one for two.
    train = [array[:12] for array in TRAIN]
    model.fit(*train, batch_size=4, epochs=2, callbacks=[callback], verbose=0)
    run = kt.TrainingRun(tmp_path)
    assert [c.num_steps for c in run] == [3, 3]
    assert run.learning_rates == pytest.approx(np.full(6, 0.1))

    def scores(model, strategy):
        tracin = kt.TracIn(model, TRAIN, run, strategy=strategy)
        influence = tracin.influence(TEST, verbose=0).scores
        return influence, tracin.self_influence(verbose=0).scores

    under = scores(model, strategy)
    for found in (scores(model, None), scores(build(), None)):
        for value, expected in zip(found, under, strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_a_model_built_outside_of_the_strategy_is_refused(single):
    with pytest.raises(
        ValueError, match=row("other-strategy", "strategy.scope")
    ):
        kt.TracIn(build(), TRAIN, single[0], strategy=mirrored(2))


def test_something_else_than_a_strategy_is_refused(single):
    with pytest.raises(
        TypeError, match=row("strategy", "tf.distribute.Strategy...'gpu'")
    ):
        kt.TracIn(build(), TRAIN, single[0], strategy="gpu")
