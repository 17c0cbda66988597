"""Tracing held against what training did, by its own definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.trace import trace_training
from tests.error_rows import row
from tests.strategies import mirrored
from tests.trace.helpers import LOSS, QUERIES, X, Y, losses, make_model


def trace(model, **options):
    settings = {"epochs": 2, "batch_size": 7, **options}
    return trace_training(model, (X, Y), QUERIES, **settings)


CASES = {
    "sgd": lambda: make_model(keras.optimizers.SGD(0.1)),
    "adam": lambda: make_model(keras.optimizers.Adam(0.01)),
    "dropout": lambda: make_model(
        keras.optimizers.SGD(0.1), keras.layers.Dropout(0.5, seed=1)
    ),
    "batch_norm": lambda: make_model(
        keras.optimizers.SGD(0.1), keras.layers.BatchNormalization()
    ),
    "regularised": lambda: make_model(
        keras.optimizers.SGD(0.1), decay=keras.regularizers.L2(0.1)
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_attributed_and_unattributed_make_up_the_loss_drop(case):
    model = CASES[case]()
    start = losses(model)
    found = trace(model)
    drop = start - losses(model)
    assert np.abs(drop).max() > 1e-3
    total = found.scores.sum(axis=1) + found.unattributed
    np.testing.assert_allclose(total, drop, atol=2e-6)
    np.testing.assert_allclose(found.loss_drop, drop, atol=2e-6)
    if case in ("sgd", "dropout"):
        assert not found.unattributed.any()
    else:
        assert np.abs(found.unattributed).min() > 1e-6


@pytest.mark.parametrize("dropout", [None, keras.layers.Dropout(0.5, seed=1)])
def test_plain_sgd_measured_the_long_way_leaves_nothing_unattributed(
    monkeypatch, dropout
):
    monkeypatch.setattr(
        "keras_tracin.trace.measures.is_plain", lambda model: False
    )
    found = trace(make_model(keras.optimizers.SGD(0.1), dropout))
    np.testing.assert_allclose(found.steps.unattributed, 0, atol=1e-6)
    np.testing.assert_allclose(
        found.steps.along_step, found.steps.first_order, atol=1e-6
    )


def test_training_is_that_of_fit_on_the_same_batches():
    found_by, plain = CASES["adam"](), CASES["adam"]()
    found = trace(found_by)
    for ids in found.steps.ids:
        plain.train_on_batch(X[ids], Y[ids])
    for one, other in zip(
        found_by.get_weights(), plain.get_weights(), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert sorted(np.concatenate(found.steps.ids[:4])) == list(range(24))
    assert not np.array_equal(found.steps.ids[0], found.steps.ids[4])


def test_first_order_gap_shrinks_linearly_with_the_learning_rate():
    gaps, layer = [], keras.layers.Dropout(0.5, seed=1)
    for rate in (0.1, 0.05):
        steps = trace(
            make_model(keras.optimizers.SGD(rate), layer), epochs=1
        ).steps
        gap = np.abs(steps.real[0] - steps.first_order[0]).mean()
        gaps.append(gap / np.abs(steps.real[0]).mean())
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.1)


def test_masks_and_weights_count_as_they_do_in_the_real_step():
    """Plain SGD, so the sum of first-order shares is the step's gradient."""
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [
            keras.Input((5, 4)),
            keras.layers.Masking(),
            keras.layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.SGD(1e-3), LOSS)
    x = np.random.default_rng(3).normal(size=(12, 5, 4)).astype("float32")
    x[:4, 2:] = 0  # masked positions, not as many in each batch
    y = np.random.default_rng(4).integers(0, 3, (12, 5))
    weight = np.linspace(0.5, 2, 12, dtype="float32")[:, np.newaxis]
    found = trace_training(
        model, (x, y, weight), (x[:3], y[:3]), epochs=1, batch_size=4
    )
    steps = found.steps
    assert np.abs(steps.real).max() > 1e-6
    np.testing.assert_allclose(steps.first_order, steps.real, rtol=0.05)


def test_class_weights_scale_the_shares_of_their_classes():
    model, other = CASES["sgd"](), CASES["sgd"]()
    weights = {0: 1.0, 1: 0.0, 2: 3.0}
    found = trace(model, epochs=1, class_weight=weights)
    np.testing.assert_allclose(
        found.scores.sum(axis=1), found.loss_drop, atol=2e-6
    )
    for ids in found.steps.ids:
        weight = np.array([weights[label] for label in Y[ids].tolist()])
        other.train_on_batch(X[ids], Y[ids], weight)
    for one, same in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(one, same, atol=1e-6)
    long_way = np.abs(found.steps.real - found.steps.first_order)
    assert long_way.max() < 0.5 * np.abs(found.steps.real).max()


def test_schedule_gives_the_rate_applied_and_dataset_ids_are_kept(tmp_path):
    rates = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    model = make_model(keras.optimizers.SGD(rates))
    data = kt.with_ids((X, Y), ids=np.arange(24) + 100)
    start = losses(model)
    found = trace_training(
        model,
        data.shuffle(24, seed=3).batch(8),
        QUERIES,
        epochs=1,
        directory=tmp_path,
    )
    np.testing.assert_allclose(found.steps.learning_rate, [0.1, 0.05, 0.025])
    np.testing.assert_array_equal(found.train_ids, np.arange(24) + 100)
    np.testing.assert_allclose(
        found.scores.sum(axis=1), start - losses(model), atol=2e-6
    )
    saved = kt.TrainingTrace.load(tmp_path)
    np.testing.assert_array_equal(saved.steps.real, found.steps.real)
    np.testing.assert_array_equal(saved.scores, found.scores)
    assert [len(ids) for ids in saved.steps.ids] == [8, 8, 8]


def test_what_cannot_be_traced_is_refused_with_a_remedy():
    model = CASES["sgd"]()
    without_ids = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
    with pytest.raises(TypeError, match=row("trace-ids", "with_ids")):
        trace_training(model, without_ids, QUERIES, epochs=1)
    model = make_model(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    with pytest.raises(ValueError, match=row("trace-accumulation", "_steps=2")):
        trace(model)
    model = CASES["sgd"]()
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(
        ValueError, match=row("trace-execution", "steps_per_execution=1")
    ):
        trace(model)
    model = keras.Sequential([keras.layers.Dense(3)])
    for _ in range(2):  # not compiled, and compiled but not built
        with pytest.raises(ValueError, match=row("trace-unbuilt")):
            trace(model)
        model.compile("sgd", LOSS)
    with mirrored(2).scope():
        model = CASES["sgd"]()
    with pytest.raises(
        ValueError, match=row("trace-replicas", "strategy of 2 replicas")
    ):
        trace(model)


def test_numbers_that_are_none_end_it_with_the_ids_in_question(tmp_path):
    model = CASES["sgd"]()
    queries = QUERIES[0].copy(), QUERIES[1]
    queries[0][3] = np.nan
    with pytest.raises(
        ValueError,
        match=row("trace-diverged", "losses of queries with ids [3]"),
    ):
        trace_training(model, (X, Y), queries, epochs=1)
    x = X.copy()
    x[5] = np.inf
    for train in (trace_training, kt.sketch_training):
        options = {"directory": tmp_path / train.__name__}
        if train is kt.sketch_training:
            options["projection"] = kt.TensorSketch(8)
        with pytest.raises(
            ValueError, match=row("trace-diverged", "of examples with ids [5]")
        ):
            train(CASES["sgd"](), (x, Y), QUERIES, epochs=1, **options)


def test_a_rate_that_the_step_itself_sets_is_refused():
    class Setting(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(3)

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            self.optimizer.learning_rate.assign(0.02)
            return super().train_step(data)

    model = Setting()
    model.compile(keras.optimizers.SGD(0.1), LOSS)
    model(X[:1])
    with (
        pytest.warns(UserWarning, match="`train_step` of its own"),
        pytest.raises(
            ValueError, match=row("trace-rate", "from 0.1... to 0.0")
        ),
    ):
        trace(model)
