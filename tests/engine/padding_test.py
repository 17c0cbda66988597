"""Batches of several lengths: scores do not depend on the padding."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.engine.engine import Engine
from tests.error_rows import row

RNG = np.random.default_rng(0)
LENGTHS = [3, 5, 2, 6, 7, 4, 2, 7]
SEQUENCES = [RNG.integers(1, 9, length) for length in LENGTHS]
LABELS = RNG.integers(0, 2, len(LENGTHS))
X = np.stack([np.pad(s, (0, 7 - len(s))) for s in SEQUENCES])


def sequences():
    signature = tf.TensorSpec([None], tf.int64), tf.TensorSpec([], tf.int64)
    return tf.data.Dataset.from_generator(
        lambda: zip(SEQUENCES, LABELS, strict=True), output_signature=signature
    )


def make_model(masked=True):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((None,)),
            keras.layers.Embedding(9, 3, mask_zero=masked),
            keras.layers.Dense(4),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("sgd", "binary_crossentropy")
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, its run, and the scores of examples of one length."""
    directory = tmp_path_factory.mktemp("run")
    model = make_model()
    callback = kt.TracInCheckpoint(directory)
    model.fit(X, LABELS, callbacks=[callback], verbose=0)
    tracin = kt.TracIn(model, (X, LABELS), directory)
    return model, directory, tracin.influence((X, LABELS), verbose=0).scores


def test_padded_batches_give_the_scores_of_one_length(trained):
    model, directory, expected = trained
    train = sequences().padded_batch(2)
    tracin = kt.TracIn(model, train, directory)
    scores = tracin.influence(train, verbose=0)
    np.testing.assert_allclose(scores.scores, expected, 1e-4, 1e-6)
    short = sequences().take(3).padded_batch(3)  # queries of another length
    scores = tracin.influence(short, verbose=0)
    np.testing.assert_allclose(scores.scores, expected[:3], 1e-4, 1e-6)


def test_a_check_reads_padded_batches(trained):
    model, directory, _ = trained
    report = kt.check(model, sequences().padded_batch(2), directory, verbose=0)
    assert not [f for f in report.findings if f.severity == "error"]


def test_buckets_give_the_scores_of_one_length(trained):
    model, directory, expected = trained
    named = kt.with_ids(sequences(), list(range(8)))
    train = named.bucket_by_sequence_length(
        lambda x, y: tf.shape(x)[0], [4], [3, 3]
    )
    scores = kt.TracIn(model, train, directory).influence(
        (X, LABELS), verbose=0
    )
    order = scores.train_ids
    assert sorted(order) == list(range(8)) != order.tolist()
    np.testing.assert_allclose(scores.scores, expected[:, order], 1e-4, 1e-6)


def test_generators_of_several_lengths_give_the_scores_of_one(trained):
    model, directory, expected = trained

    def batches():
        return sequences().padded_batch(2).as_numpy_iterator()

    scores = kt.TracIn(model, batches, directory).influence(
        (X, LABELS), verbose=0
    )
    np.testing.assert_allclose(scores.scores, expected, 1e-4, 1e-6)


def test_a_model_that_sees_the_padding_is_refused():
    message = row("seen-padding", "`train`", "'sequential", "mask_zero=True")
    with pytest.raises(ValueError, match=message):
        Engine(make_model(masked=False), sequences().padded_batch(2))


@pytest.mark.parametrize("masked", [False, True])
def test_labels_of_positions_need_a_mask(masked):
    layers = [keras.layers.Masking()] if masked else []
    model = keras.Sequential(
        [keras.Input((None, 1)), *layers, keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")

    def positions(tokens, _):
        values = tf.cast(tokens, tf.float32)[:, None]
        return values, values + 1

    data = sequences().map(positions).padded_batch(2)
    if masked:
        padded = Engine(model, data).train
        assert next(padded.batches(8)).x.shape == (2, 7, 1)
        return
    with pytest.raises(ValueError, match=row("seen-padding")):
        Engine(model, data)
