"""Trainings whose steps are the user's own: what is recorded of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.runs import TrainingRun, run_weights
from tests.error_rows import row
from tests.runs.own_steps import (
    GAN,
    WIDTH,
    AddsDivergence,
    Autoencoder,
    Distiller,
    Sampling,
    Variational,
    X,
    Y,
    dense,
    evidence,
    make_vae,
)

SGD = keras.optimizers.SGD
FAKE = np.zeros([len(X), 1], "float32")


def fit(model, data, *callbacks):
    model.fit(
        *data,
        batch_size=6,
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=list(callbacks),
    )


@pytest.fixture(scope="module")
def gan(tmp_path_factory):
    """A GAN, and the runs of all of it and of its parts."""
    model, place = GAN(), tmp_path_factory.mktemp("gan")
    model.compile(SGD(0.1), SGD(0.2))
    with pytest.warns(
        UserWarning, match=row("records-no-call", "`discriminator`")
    ):
        fit(
            model,
            (X,),
            kt.TracInCheckpoint(place / "all"),
            kt.TracInCheckpoint(place / "d", model=model.discriminator),
            kt.TracInCheckpoint(place / "g", model=model.generator),
        )
    return model, place


def test_a_model_without_call_is_recorded_with_each_optimizers_rate(gan):
    model, place = gan
    last = TrainingRun(place / "all")[-1]
    assert last.num_steps == 2
    assert dict(last.updated) == pytest.approx({0: 0.1, 1: 0.1, 2: 0.2, 3: 0.2})
    assert not model.built
    other = GAN()
    last.restore(other)
    for restored, trained in zip(other.weights, model.weights, strict=True):
        np.testing.assert_array_equal(restored, trained)


@pytest.mark.parametrize(("name", "rate"), [("d", 0.1), ("g", 0.2)])
def test_a_part_is_recorded_alone(gan, name, rate):
    model, place = gan
    part = model.discriminator if name == "d" else model.generator
    run = TrainingRun(place / name)
    assert dict(run[-1].updated) == pytest.approx({0: rate, 1: rate})
    assert [c.step for c in run] == [2, 4]
    now = part.get_weights()
    with run_weights(part) as load:
        load(run[-1])
        for recorded, value in zip(part.get_weights(), now, strict=True):
            np.testing.assert_array_equal(recorded, value)


def test_a_part_is_scored_as_any_model(gan):
    model, place = gan
    tracin = kt.TracIn(
        model.discriminator, (X, FAKE), place / "d", loss="binary_crossentropy"
    )
    scores = tracin.influence((X[:2], FAKE[:2]), verbose=0).scores
    assert scores.shape == (2, len(X))
    with pytest.raises(ValueError, match=row("no-call", "`generator`")):
        kt.TracIn(model, X, place / "all")


def test_what_is_no_part_of_the_trained_model_is_refused(gan, tmp_path):
    model, _ = gan
    callback = kt.TracInCheckpoint(tmp_path, model=GAN().discriminator)
    with pytest.raises(ValueError, match=row("foreign-part")):
        fit(model, (X,), callback)


@pytest.mark.filterwarnings("ignore:The model .* has no `call`")
def test_a_model_that_its_first_step_builds_is_recorded(tmp_path):
    def trained(*callbacks):
        keras.utils.set_random_seed(0)
        model = Autoencoder()
        model.compile("adam")
        fit(model, (X,), *callbacks)
        return model.get_weights()

    for alone, recorded in zip(
        trained(), trained(kt.TracInCheckpoint(tmp_path)), strict=True
    ):
        np.testing.assert_array_equal(alone, recorded)
    run = TrainingRun(tmp_path)
    assert [c.step for c in run] == [2, 4]
    assert len(run[0].updated) == 4


def assert_scores(model, run, data, loss, loss_of):
    """TracIn of all pairs is what a tape gives, one example at a time."""
    x, y = data
    tracin = kt.TracIn(model, data, run, loss=loss)
    scores = tracin.influence(data, verbose=0).scores
    expected = np.zeros_like(scores)
    with run_weights(model) as load:
        for checkpoint in TrainingRun(run):
            load(checkpoint)
            rows = []
            for i in range(len(x)):
                with tf.GradientTape() as tape:
                    value = loss_of(x[i : i + 1], y[i : i + 1])
                parts = tape.gradient(value, model.trainable_variables)
                rows.append(np.concatenate([np.ravel(p) for p in parts]))
            gradients = np.stack(rows)
            expected += checkpoint.learning_rate * gradients @ gradients.T
    np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-5)


def test_a_student_is_scored_by_the_loss_that_it_learns_from(tmp_path):
    """What the teacher says of an example is part of its label."""
    student, teacher = dense(WIDTH, 2), dense(WIDTH, 2)
    model = Distiller(student, teacher)
    model.compile(SGD(0.1))
    fit(model, (X, Y), kt.TracInCheckpoint(tmp_path, model=student))

    def loss(y_true, y_pred):
        labels, logits = y_true[:, 0], y_true[:, 1:]
        hard = keras.losses.sparse_categorical_crossentropy(
            labels, y_pred, from_logits=True
        )
        soft = keras.losses.categorical_crossentropy(
            keras.ops.softmax(logits / 2), y_pred / 2, from_logits=True
        )
        return 0.5 * hard + 0.5 * soft

    targets = np.concatenate([Y[:, None], teacher(X)], axis=1)
    assert_scores(
        student,
        tmp_path,
        (X, targets),
        loss,
        lambda x, y: model.loss_of(x, y[:, 0]),
    )


def test_an_autoencoder_is_scored_by_all_that_its_loss_is_of(tmp_path):
    _, model = make_vae(Sampling(), Variational)
    model.compile(SGD(0.01), loss="mse")
    fit(model, (X,), kt.TracInCheckpoint(tmp_path))
    with pytest.raises(ValueError, match=row("own-step-loss")):
        kt.TracIn(model, (X, X), tmp_path)
    assert_scores(
        model,
        tmp_path,
        (X, X),
        evidence,
        lambda x, _: evidence(x, model(x, training=False)),
    )


def test_added_losses_are_scored_through_a_model_that_returns_what_they_are_of(
    tmp_path,
):
    model, whole = make_vae(AddsDivergence())
    model.compile(SGD(0.01), "mse")
    fit(model, (X, X), kt.TracInCheckpoint(tmp_path))
    with pytest.raises(ValueError, match=row("added-losses")):
        kt.TracIn(model, (X, X), tmp_path)
    assert_scores(
        whole,
        tmp_path,
        (X, X),
        evidence,
        lambda x, _: evidence(x, whole(x, training=False)),
    )
