"""The main job on real data: MNIST through TFDS, callback, run and scores."""

import os
import pathlib

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds

import keras_tracin as kt

DATA = pathlib.Path(os.environ.get("KERAS_TRACIN_DATA", "../shared/data"))
NUM_TRAIN, NUM_TEST = 1_000, 20

pytestmark = pytest.mark.skipif(
    not (DATA / "tfds" / "mnist").is_dir(),
    reason=f"MNIST is not in {DATA / 'tfds'}; set KERAS_TRACIN_DATA",
)


def load(split):
    """MNIST with the ids that TFDS gives, as elements of a dict."""
    return tfds.load(
        "mnist",
        split=split,
        data_dir=str(DATA / "tfds"),
        download=False,
        shuffle_files=False,
        read_config=tfds.ReadConfig(add_tfds_id=True),
    )


def to_xy(element):
    """A scaled image and its label."""
    image = keras.ops.cast(element["image"], "float32") / 255
    return image, element["label"]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A model trained on shuffled data with flipped labels, and its TracIn."""
    keras.utils.set_random_seed(0)
    elements = list(load(f"train[:{NUM_TRAIN}]").as_numpy_iterator())
    ids = np.array([element["tfds_id"].decode() for element in elements])
    x = np.stack([to_xy(element)[0] for element in elements])
    true = np.array([element["label"] for element in elements])
    y = kt.evaluation.flip_labels(true, 0.1)

    train = kt.with_ids((x, y), ids).shuffle(NUM_TRAIN).batch(32)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 5, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    run = tmp_path_factory.mktemp("runs") / "mnist"
    callback = kt.TracInCheckpoint(run, epochs=2)
    model.fit(train, epochs=8, callbacks=[callback], verbose=0)
    return kt.TracIn(model, train, run), dict(zip(ids, y != true, strict=True))


def test_flipped_labels_have_large_self_influence(scored):
    tracin, flipped = scored
    found = kt.evaluation.mislabel_detection(
        tracin.self_influence(verbose=0), flipped
    )
    # Three times what chance finds among the first fifth.
    assert found.recall_at(0.2) > 0.6


def test_proponents_share_the_label_of_a_test_digit(scored):
    tracin, _ = scored
    labels = {
        name: int(label)
        for batch in tracin.engine.train.batches(100)
        for name, label in zip(batch.ids, batch.y.numpy(), strict=True)
    }
    test = kt.with_ids(load(f"test[:{NUM_TEST}]"), "tfds_id").map(to_xy)
    top = tracin.top_k(test.batch(7), k=5, verbose=0)
    assert all("mnist-test" in name for name in top.query_ids)
    expected = {
        element["tfds_id"].decode(): int(element["label"])
        for element in load(f"test[:{NUM_TEST}]").as_numpy_iterator()
    }

    def share(ranking):
        agree = [
            labels[name] == expected[query]
            for query, row in zip(top.query_ids, ranking.ids, strict=True)
            for name in row
        ]
        return np.mean(agree)

    assert share(top.proponents) > 0.8
    assert share(top.opponents) < 0.2
