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
    model.compile(keras.optimizers.SGD(1.0), "binary_crossentropy")
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, its run, and the scores of examples of one length."""
    directory = tmp_path_factory.mktemp("run")
    model = make_model()
    callback = kt.TracInCheckpoint(directory)
    model.fit(X, LABELS, epochs=5, callbacks=[callback], verbose=0)
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


def test_an_index_takes_queries_and_more_examples_of_several_lengths(
    trained, tmp_path
):
    model, directory, _ = trained
    tracin = kt.TracIn(model, sequences().padded_batch(2), directory)
    projection = kt.GaussianProjection(4096)
    index = kt.InfluenceIndex.build(
        tracin, tmp_path / "index", projection=projection
    )
    whole = index.query((X, LABELS), 3)
    top = index.query(sequences().padded_batch(3), 3)
    np.testing.assert_array_equal(top.query_ids, np.arange(8))
    np.testing.assert_array_equal(top.proponents.ids, whole.proponents.ids)
    np.testing.assert_allclose(
        top.proponents.scores, whole.proponents.scores, 1e-4
    )
    index.append(sequences().take(3).padded_batch(3))  # shorter than the others
    top = index.query((X[:1], LABELS[:1]), 11)
    scores = dict(
        zip(top.proponents.ids[0], top.proponents.scores[0], strict=True)
    )
    for own, appended in zip(range(3), range(8, 11), strict=True):
        assert scores[own] == pytest.approx(scores[appended], rel=1e-4)


def test_representer_points_do_not_depend_on_the_padding(trained):
    model, _, _ = trained
    train = sequences().padded_batch(2)
    points = kt.RepresenterPoints(model, train, verbose=0)
    whole = kt.RepresenterPoints(model, (X, LABELS), verbose=0)
    points.plan(train)  # which reads some of the queries
    np.testing.assert_allclose(
        points.influence(train, verbose=0).scores,
        whole.influence((X, LABELS), verbose=0).scores,
        1e-4,
        1e-6,
    )


def test_a_training_on_several_lengths_is_replayed_on_one(tmp_path):
    train = kt.with_ids(sequences(), list(range(8))).padded_batch(2)
    model = make_model()
    kt.record_training(model, train, tmp_path, epochs=2)
    unrolled = kt.UnrolledInfluence(model, train, tmp_path)
    assert unrolled.replay_error < 1e-5
    whole = kt.UnrolledInfluence(model, (X, LABELS), tmp_path)
    np.testing.assert_allclose(
        unrolled.influence(train, verbose=0).scores,
        whole.influence((X, LABELS), verbose=0).scores,
        1e-4,
        1e-7,
    )


def test_dropout_that_depends_on_the_length_is_not_replayed(tmp_path):
    train = kt.with_ids(sequences(), list(range(8))).padded_batch(2)
    embedding, *others = make_model().layers
    dropout = keras.layers.Dropout(0.5)
    model = keras.Sequential(
        [keras.Input((None,)), embedding, dropout, *others]
    )
    model.compile(keras.optimizers.SGD(1.0), "binary_crossentropy")
    kt.record_training(model, train, tmp_path, epochs=1)
    unrolled = kt.UnrolledInfluence(model, train, tmp_path)
    with pytest.raises(ValueError, match=row("replayed-padding")):
        unrolled.influence(train, verbose=0)


def test_a_trace_follows_queries_of_several_lengths():
    named = kt.with_ids(sequences(), list(range(8)))
    train, queries = named.padded_batch(4), sequences().padded_batch(3)
    traces = [
        kt.trace_training(make_model(), train, test, epochs=1)
        for test in (queries, (X, LABELS))
    ]
    assert traces[0].query_ids.tolist() == list(range(8))
    np.testing.assert_allclose(traces[0].scores, traces[1].scores, 1e-4, 1e-7)


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
