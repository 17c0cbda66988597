"""What is no model of Keras 3 is refused with what to do."""

from pathlib import Path

import keras
import numpy as np
import pytest

import keras_tracin as kt
from keras_tracin.models.kinds import check_is_model
from tests.error_rows import row

DATA = np.ones((6, 3), "float32"), np.zeros((6, 1), "float32")

ENTRIES = {
    "TracIn": lambda model, path: kt.TracIn(model, DATA, path),
    "influence functions": lambda model, path: kt.InfluenceFunctions(
        model, DATA, damping=1.0
    ),
    "TRAK": lambda model, path: kt.TRAK(model, DATA, path),
    "representer points": lambda model, path: kt.RepresenterPoints(model, DATA),
    "unrolled influence": lambda model, path: kt.UnrolledInfluence(
        model, DATA, path
    ),
    "index": lambda model, path: kt.InfluenceIndex(path, model),
    "check": lambda model, path: kt.check(model, DATA),
    "record": lambda model, path: kt.record_training(
        model, DATA, path, epochs=1
    ),
    "trace": lambda model, path: kt.trace_training(model, DATA, DATA, epochs=1),
}


@pytest.fixture(scope="module")
def old():
    """A model of Keras 2, compiled and trained for a step."""
    import tf_keras

    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [tf_keras.Input((3,)), layers.BatchNormalization(), layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    model.fit(*DATA, verbose=0)
    return model


def as_in_keras_3():
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((3,)), layers.BatchNormalization(), layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    return model


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_model_of_keras_2_is_named_with_the_way_to_move(old, entry, tmp_path):
    with pytest.raises(
        TypeError, match=row("keras-2-model", "a `tf_keras.Sequential`")
    ):
        entry(old, tmp_path)


def test_the_callback_refuses_keras_2_before_it_trains(old, tmp_path):
    before = old.get_weights()
    with pytest.raises(TypeError, match=row("keras-2-model")):
        old.fit(*DATA, callbacks=[kt.TracInCheckpoint(tmp_path)], verbose=0)
    for weight, expected in zip(old.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, expected)
    assert not list(tmp_path.iterdir())


def test_the_way_to_move_gives_the_same_model(old, tmp_path):
    outputs = old.predict(DATA[0], verbose=0)
    model = as_in_keras_3()
    model.set_weights(old.get_weights())
    np.testing.assert_allclose(model.predict(DATA[0], verbose=0), outputs)
    old.save_weights(tmp_path / "old.h5")
    converted = tmp_path / "epoch-01.weights.h5"
    model = as_in_keras_3()
    model.load_weights(tmp_path / "old.h5")
    model.save_weights(converted)
    run = kt.TrainingRun.from_weights([converted], 0.01)
    model = as_in_keras_3()
    model.load_weights(run[0].path)
    np.testing.assert_allclose(model.predict(DATA[0], verbose=0), outputs)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("model.keras", "a path. Pass...load_model('model.keras')"),
        (Path("model.keras"), "a path. Pass...load_model('model.keras')"),
        (keras.Sequential, "the class `Sequential`"),
        (None, "a `NoneType`"),
        (keras.layers.Dense(1), "a `keras.Dense`"),
    ],
)
def test_what_is_no_model_is_named(wrong, named):
    with pytest.raises(TypeError, match=row("not-a-model", named)):
        check_is_model(wrong)
