"""Trainings whose steps are the user's own: what is recorded of them."""

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.runs import TrainingRun, run_weights
from tests.error_rows import row
from tests.runs.own_steps import (
    GAN,
    Autoencoder,
    X,
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
