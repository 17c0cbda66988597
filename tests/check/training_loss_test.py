"""The losses that a run has on record tell whether data are what it saw."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.check.training_loss import TrainingLoss
from keras_tracin.data.examples import open_examples

layers = keras.layers
WEIGHTS = {0: 10.0, 1: 0.1, 2: 1.0}


def blobs(count=192, seed=0):
    """Three classes around centres of their own."""
    centres = np.random.default_rng(7).normal(size=(3, 6), scale=1.5)
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count)
    x = centres[y] + rng.normal(size=(count, 6))
    return x.astype("float32"), y


def classifier(*between, reduction="sum_over_batch_size", rate=0.05, **kernel):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = layers.Dense(16, activation="relu", **kernel)(inputs)
    for layer in between:
        hidden = layer(hidden)
    model = keras.Model(inputs, layers.Dense(3, **kernel)(hidden))
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=reduction
    )
    model.compile(keras.optimizers.SGD(rate, momentum=0.9), loss)
    return model


def recorded(model, data, directory, epochs=4, **options):
    recorder = kt.TracInCheckpoint(directory)
    x, y = data
    model.fit(
        *(x, y),
        epochs=epochs,
        batch_size=16,
        verbose=0,
        callbacks=[recorder],
        **options,
    )
    return kt.TrainingRun(directory)


def finding(model, data, run, class_weight=None):
    """The only one, after which the model is as it was."""
    before = [variable.numpy() for variable in model.variables]
    loss = TrainingLoss(model, open_examples(data), class_weight)
    (only,) = loss.findings(run)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    return only


def permuted(data):
    x, y = data
    return x, (y + 1) % 3


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    model, data = classifier(), blobs()
    return model, data, recorded(model, data, tmp_path_factory.mktemp("plain"))


def test_the_loss_is_the_one_that_fit_has_at_these_weights(tmp_path):
    x, y = data = blobs(32)
    model = classifier(kernel_regularizer=keras.regularizers.L2(0.1))
    model.compile(keras.optimizers.SGD(0.1), model.loss)
    run = recorded(model, (x[:16], y[:16]), tmp_path, epochs=1)
    loss = TrainingLoss(model, open_examples((x[:16], y[:16])))
    (epoch,) = loss.comparisons(run)
    # A single step, whose loss is that of the weights before it.
    np.testing.assert_allclose(epoch.before, run.history["loss"][0], 1e-5)
    expected = model.evaluate(x[:16], y[:16], verbose=0)
    np.testing.assert_allclose(epoch.after, expected, 1e-5)
    assert epoch.error == 0
    assert len(data[0]) == 32


def test_the_data_of_the_training_agree_with_its_record(plain):
    model, data, run = plain
    assert finding(model, data, run).severity == "note"


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x * 255, y),
        lambda x, y: (x, (y + 1) % 3),
        lambda x, y: (x[:, ::-1], y),
        lambda x, y: (np.zeros_like(x), y),
        lambda x, y: (x, np.roll(y, 1)),
    ],
    ids=["unscaled", "classes", "columns", "nothing", "shifted"],
)
def test_other_data_are_told_apart(plain, change):
    model, data, run = plain
    other = finding(model, change(*data), run)
    assert other.severity in ("error", "warning")
    assert "does not seem to be what `fit` was trained on" in other.message


def test_a_check_of_other_data_is_not_ready(plain):
    model, data, run = plain
    assert kt.check(model, data, run, verbose=0).ok
    report = kt.check(model, (data[0] * 255, data[1]), run, verbose=0)
    assert not report.ok
    assert "Look for scaling" in report.errors[0].message


@pytest.mark.parametrize(
    ("between", "options"),
    [
        ([layers.Dropout(0.5)], {}),
        ([layers.BatchNormalization()], {}),
        ([], {"kernel_regularizer": keras.regularizers.L2(0.1)}),
        ([], {"reduction": "sum", "rate": 0.005}),
        ([], {"rate": 1.0}),
    ],
    ids=["dropout", "batch norm", "penalty", "sum", "large steps"],
)
def test_what_training_adds_is_no_difference(between, options, tmp_path):
    model, data = classifier(*between, **options), blobs()
    run = recorded(model, data, tmp_path)
    right = finding(model, data, run)
    assert "agrees with the losses on record" in right.message
    wrong = finding(model, permuted(data), run)
    assert "does not seem" in wrong.message


def test_unscaled_data_are_told_apart_behind_batch_normalization(tmp_path):
    model = classifier(layers.BatchNormalization(momentum=0.8))
    x, y = blobs()
    run = recorded(model, (x, y), tmp_path)
    assert finding(model, (x, y), run).severity == "note"
    other = finding(model, (x * 255, y), run)
    assert "in inference mode" in other.message


def test_class_weights_of_the_training_count(tmp_path):
    model, data = classifier(), blobs()
    run = recorded(model, data, tmp_path, class_weight=WEIGHTS)
    assert "agrees" in finding(model, data, run, WEIGHTS).message
    less = {label: weight / 100 for label, weight in WEIGHTS.items()}
    run = recorded(classifier(), data, tmp_path / "less", class_weight=less)
    assert "class or sample weights" in finding(model, data, run).message


def test_a_training_on_augmented_data_is_only_noted(tmp_path):
    x, y = blobs()
    noise = np.random.default_rng(1).normal(size=x.shape, scale=3)
    model = classifier()
    run = recorded(model, (x + noise, y), tmp_path, epochs=2)
    right = finding(model, (x, y), run)
    assert right.severity == "note"


def test_a_train_step_of_its_own_says_nothing_of_the_loss(plain):
    class Own(keras.Model):
        def train_step(self, data):
            return super().train_step(data)

    model, (x, y), run = plain
    own = Own(model.input, model.output)
    own.compile("sgd", model.loss)
    assert not list(TrainingLoss(own, open_examples((x * 9, y))).findings(run))


def test_a_stream_is_sampled_by_a_seed(plain):
    model, data, run = plain
    stream = kt.with_ids(data).batch(10)
    first, again = (
        TrainingLoss(model, open_examples(stream)).comparisons(run)
        for _ in range(2)
    )
    assert first == again
    arrays = TrainingLoss(model, open_examples(data)).comparisons(run)
    np.testing.assert_allclose(first[-1].after, arrays[-1].after, 0.2)


def test_a_loss_below_zero_is_compared_by_its_distance(tmp_path):
    x, y = blobs()
    model = classifier()
    model.compile(keras.optimizers.SGD(0.5), "cosine_similarity")
    data = x, np.eye(3, dtype="float32")[y]
    run = recorded(model, data, tmp_path)
    assert run.history["loss"][-1] < 0
    assert "agrees" in finding(model, data, run).message
    away = finding(model, (x, -data[1]), run)
    assert "does not seem" in away.message
