"""Scores do not depend on how the data is packed, batched or ordered."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import keras_tracin as kt

MOST = 23
WIDTHS = {"a": 3, "b": 2}
layers = keras.layers

few_examples = settings(
    max_examples=6,  # each is traced anew
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def make_model():
    """Two inputs, statistics of one, and dropout."""
    keras.utils.set_random_seed(0)
    a, b = (keras.Input((WIDTHS[name],), name=name) for name in WIDTHS)
    x = layers.Concatenate()([a, layers.BatchNormalization()(b)])
    x = layers.Dropout(0.5)(layers.Dense(4, activation="relu")(x))
    model = keras.Model({"a": a, "b": b}, layers.Dense(3)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.05), loss)
    return model


def make_examples(count, seed):
    rng = np.random.default_rng(seed)
    x = {
        name: rng.normal(size=(count, width)).astype("float32")
        for name, width in WIDTHS.items()
    }
    weight = rng.uniform(0.5, 2, count).astype("float32")
    return x, rng.integers(0, 3, count), weight


ALL, QUERIES = make_examples(MOST, 0), make_examples(5, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The model, its run, and one scorer's answers about all the data."""
    directory = tmp_path_factory.mktemp("run")
    model = make_model()
    recording = kt.TracInCheckpoint(directory)
    x, y, weight = ALL
    model.fit(
        x,
        y,
        sample_weight=weight,
        epochs=2,
        batch_size=8,
        verbose=0,
        callbacks=[recording],
    )
    tracin = kt.TracIn(model, ALL, directory)
    return (
        model,
        directory,
        tracin.influence(QUERIES, verbose=0).scores,
        tracin.self_influence(verbose=0).scores,
    )


def rows(data, picked):
    return tf.nest.map_structure(lambda leaf: leaf[picked], data)


def sliced(data):
    return tf.data.Dataset.from_tensor_slices(data)


def batched_unevenly(data, sizes):
    """Batches of the given sizes, over and over."""
    count, starts = len(data[1]), [0]
    while starts[-1] < count:
        starts.append(starts[-1] + sizes[len(starts) % len(sizes)])
    spec = tf.nest.map_structure(
        lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), data
    )

    def batches():
        for start, stop in itertools.pairwise(starts):
            yield rows(data, slice(start, min(stop, count)))

    return tf.data.Dataset.from_generator(batches, output_signature=spec)


KINDS = {
    "arrays": lambda data, batch: data,
    "tensors": lambda data, batch: tf.nest.map_structure(tf.constant, data),
    "dataset": lambda data, batch: sliced(data).batch(batch),
    "mapped": lambda data, batch: (
        sliced(data).map(lambda x, y, w: (dict(x), y, w)).batch(batch)
    ),
    "rebatched": lambda data, batch: sliced(data).batch(5).rebatch(batch),
    "prefetched": lambda data, batch: sliced(data).batch(batch).prefetch(2),
    "uneven": lambda data, batch: batched_unevenly(data, [batch, 3, 1]),
    "with ids": lambda data, batch: kt.with_ids(data).batch(batch),
    "shuffled": lambda data, batch: kt.with_ids(data).shuffle(50).batch(batch),
}
kinds = st.sampled_from(sorted(KINDS))
sizes = st.integers(1, 9)


def in_id_order(ids):
    """Where each id stands, for ids 0 to n - 1 in any order."""
    order = np.argsort(ids)
    np.testing.assert_array_equal(ids[order], np.arange(len(ids)))
    return order


def assert_alike(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=2e-5)


@few_examples
@given(
    count=st.integers(1, MOST),
    train_kind=kinds,
    test_kind=kinds,
    train_batch=sizes,
    test_batch=sizes,
)
def test_influence_is_that_of_each_pair_alone(
    trained, count, train_kind, test_kind, train_batch, test_batch
):
    model, directory, expected, _ = trained
    train = KINDS[train_kind](rows(ALL, slice(count)), train_batch)
    test = KINDS[test_kind](QUERIES, test_batch)
    found = kt.TracIn(model, train, directory).influence(test, verbose=0)
    columns, lines = in_id_order(found.train_ids), in_id_order(found.query_ids)
    assert_alike(found.scores[lines][:, columns], expected[:, :count])


@few_examples
@given(
    count=st.integers(1, MOST),
    kind=kinds,
    batch=sizes,
    step=st.integers(1, 30),
    room=st.integers(1, 4096),
)
def test_self_influence_is_that_of_each_example_alone(
    trained, count, kind, batch, step, room
):
    """Also in steps of few examples and chunks that fit into little memory."""
    model, directory, _, expected = trained
    data = KINDS[kind](rows(ALL, slice(count)), batch)
    tracin = kt.TracIn(model, data, directory, memory_limit=room)
    tracin = tracin.within(batch_sizes=(step, step))
    found = tracin.self_influence(verbose=0)
    assert_alike(found.scores[in_id_order(found.ids)], expected[:count])


@few_examples
@given(k=st.integers(1, 7), kind=kinds, batch=sizes, room=st.integers(1, 9999))
def test_top_k_is_the_ends_of_all_scores(trained, k, kind, batch, room):
    model, directory, scores, _ = trained
    tracin = kt.TracIn(
        model, KINDS[kind](ALL, batch), directory, memory_limit=room
    )
    found = tracin.top_k(QUERIES, k, verbose=0)
    order = np.argsort(-scores, axis=1, kind="stable")
    np.testing.assert_array_equal(found.proponents.ids, order[:, :k])
    np.testing.assert_array_equal(found.opponents.ids, order[:, ::-1][:, :k])


PACKED = {
    "a dict": lambda x: x,
    "a list": lambda x: [x["a"], x["b"]],
    "a tuple": lambda x: (x["a"], x["b"]),
}


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        ("arrays", "a list"),
        ("arrays", "a tuple"),
        ("dataset", "a dict"),
        ("dataset", "a list"),
    ],
)
def test_inputs_may_be_packed_as_the_model_takes_them(trained, packed, kind):
    source, directory, expected, _ = trained
    pack = PACKED[packed]
    model = source
    if pack is not PACKED["a dict"]:
        inputs = [source.inputs[0], source.inputs[1]]
        model = keras.Model(inputs, source.outputs[0])
        model.compile(loss=source.loss)
    x, y, weight = ALL
    data = (pack(x), y, weight)
    if kind == "dataset":
        x = pack(x)
        data = sliced((tuple(x) if isinstance(x, list) else x, y, weight))
        data = data.batch(4)
    run = kt.TrainingRun.from_weights(
        [c.path for c in kt.TrainingRun(directory)],
        kt.TrainingRun(directory)[0].learning_rate,
    )
    test = (pack(QUERIES[0]), *QUERIES[1:])
    found = kt.TracIn(model, data, run).influence(test, verbose=0)
    assert_alike(found.scores, expected)


@few_examples
@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    units=st.integers(1, 5),
    count=st.integers(1, 6),
    queries=st.integers(1, 4),
)
def test_scores_of_one_layer_are_written_down_by_hand(
    tmp_path_factory, shape, units, count, queries
):
    """For squared error, W's gradient is x (Wx - y)ᵀ, times 2/units."""
    rng = np.random.default_rng(0)

    def draw(n, size):
        return rng.normal(size=(n, *size)).astype("float32")

    train, test = ((draw(n, shape), draw(n, [units])) for n in (count, queries))
    model = keras.Sequential(
        [keras.Input(shape), layers.Flatten(), layers.Dense(units)]
    )
    model.compile(loss="mse")
    path = tmp_path_factory.mktemp("w") / "1.weights.h5"
    model.save_weights(path)
    run = kt.TrainingRun.from_weights([path], 0.5)
    found = kt.TracIn(model, train, run).influence(test, verbose=0)
    kernel, bias = map(np.float64, model.get_weights())

    def parts(data):
        x = data[0].reshape(len(data[0]), -1).astype(np.float64)
        return x, 2 / units * (x @ kernel + bias - data[1])

    (x, error), (x2, error2) = parts(train), parts(test)
    expected = 0.5 * (error2 @ error.T) * (x2 @ x.T + 1)
    np.testing.assert_allclose(
        found.scores, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
    )
