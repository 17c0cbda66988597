"""An index that was made of something else is not gone on with."""

import json
import shutil

import keras
import numpy as np
import pytest

import keras_tracin as kt
from tests.error_rows import row

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 3)).astype("float32")
TRAIN = X, (4 * X[:, :1] + 1).astype("float32")
MORE = X[:5] + 1, TRAIN[1][:5]
PROJECTION = kt.TensorSketch(8, seed=1)


def huber(delta):
    return lambda y, p: keras.losses.huber(y, p, delta=delta)


def build(activation="tanh", loss="mse"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, activation),
            keras.layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01), loss)
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run")
    callback = kt.TracInCheckpoint(directory)
    model = build()
    model.fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return directory


def method(run, delta=5.0, model=None, train=TRAIN):
    return kt.TracIn(
        model or build(), train, run, query_loss=huber(delta), loss="mse"
    )


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """An index of TracIn whose queries are measured by a lambda."""
    directory = tmp_path_factory.mktemp("index")
    kt.InfluenceIndex.build(method(run), directory, projection=PROJECTION)
    return directory


@pytest.fixture
def copied(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def change(directory, **entries):
    path = directory / "index.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, **entries}))


def former(directory):
    """Makes of an index what the former version would have written."""
    path = directory / "index.json"
    manifest = json.loads(path.read_text())
    del manifest["identity"]["objective"], manifest["layers"]
    path.write_text(json.dumps({**manifest, "format_version": 2}))
    (directory / "fingerprint.npz").unlink()


def test_recurrences_as_an_earlier_version_sketched_them_are_refused(
    run, copied
):
    change(copied, format_version=3)
    kt.InfluenceIndex(copied, build(), method=method(run))  # without any
    model = keras.Sequential([keras.Input((3, 1)), keras.layers.GRU(2)])
    with pytest.raises(
        ValueError, match=row("old-recurrences", "'gru...index anew")
    ):
        kt.InfluenceIndex(copied, model)


def test_another_query_loss_or_activation_is_refused(run, copied):
    with pytest.raises(
        ValueError,
        match=row("stale-index", "queries are measured by...built wi"),
    ):
        kt.InfluenceIndex(copied, build(), method=method(run, 0.05))
    other = build("sigmoid")
    with pytest.raises(
        ValueError, match=row("stale-index", "has other outputs...built with")
    ):
        kt.InfluenceIndex(copied, other, method=method(run, model=other))
    change(copied, finished=0)
    with pytest.raises(
        ValueError, match=row("stale-index", "queries are measured by")
    ):
        kt.InfluenceIndex.build(
            method(run, 0.05), copied, projection=PROJECTION
        )
    kt.InfluenceIndex.build(method(run), copied, projection=PROJECTION)


def test_a_method_with_more_examples_is_that_of_the_index(run, copied):
    index = kt.InfluenceIndex(copied, build(), method=method(run))
    index.append(MORE)
    both = tuple(map(np.concatenate, zip(TRAIN, MORE, strict=True)))
    again = kt.InfluenceIndex(copied, build(), method=method(run, train=both))
    assert len(again) == 65
    fewer = method(run, train=(X[:5], TRAIN[1][:5]))
    with pytest.raises(ValueError, match=row("compared-examples", "ids [")):
        kt.InfluenceIndex(copied, build(), method=fewer)


def test_an_index_of_the_former_version_is_read_not_written(run, copied):
    expected = kt.InfluenceIndex(copied, build(), method=method(run))
    former(copied)
    index = kt.InfluenceIndex(copied, build(), method=method(run))
    np.testing.assert_array_equal(
        index.query(MORE, 3).proponents.scores,
        expected.query(MORE, 3).proponents.scores,
    )
    with pytest.raises(ValueError, match=row("old-index", "another directory")):
        index.append(MORE)
    change(copied, finished=0)
    with pytest.raises(ValueError, match=row("old-index", "another directory")):
        kt.InfluenceIndex.build(method(run), copied, projection=PROJECTION)


def test_a_model_alone_is_compared_by_its_configuration(run, tmp_path):
    plain = kt.TracIn(build(), TRAIN, run)
    kt.InfluenceIndex.build(plain, tmp_path, projection=PROJECTION)
    kt.InfluenceIndex(tmp_path, build())
    with pytest.raises(
        ValueError, match=row("index-recipe", "layer 0.activation='sigmoid'")
    ):
        kt.InfluenceIndex(tmp_path, build("sigmoid"))
    with pytest.raises(
        ValueError, match=row("index-recipe", "compiled.loss...method=")
    ):
        kt.InfluenceIndex(tmp_path, build(loss=keras.losses.Huber()))
    former(tmp_path)
    kt.InfluenceIndex(tmp_path, build())
