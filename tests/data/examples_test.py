"""Batches with ids, from arrays and from `tf.data`."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_tracin.data.batches import Batch, content_digest
from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.examples import open_examples, select
from keras_tracin.data.with_ids import with_ids
from tests.error_rows import row


def arrays(count=10):
    """Examples that tell their position: x = [i, i], y = 10 i."""
    x = np.repeat(np.arange(count, dtype="float32")[:, None], 2, axis=1)
    return x, 10 * np.arange(count)


def sliced(count=10):
    return tf.data.Dataset.from_tensor_slices(arrays(count))


def read(data, batch_size=4):
    return list(open_examples(data).batches(batch_size))


def joined(batches, field):
    return np.concatenate([np.asarray(getattr(b, field)) for b in batches])


def assert_ids_fit(dataset, expected=None):
    """Each id is still beside the example that it was given to."""
    batches = read(dataset)
    ids = joined(batches, "ids")
    np.testing.assert_array_equal(joined(batches, "x")[:, 0], ids)
    np.testing.assert_array_equal(joined(batches, "y"), 10 * ids)
    if expected is not None:
        np.testing.assert_array_equal(ids, expected)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 30),
    made=st.integers(1, 12),
    read_in=st.integers(1, 12),
    kind=st.sampled_from(["arrays", "tf.data", "with ids"]),
)
def test_batches_together_are_the_data(count, made, read_in, kind):
    data = {
        "arrays": arrays(count),
        "tf.data": sliced(count).batch(made),
        "with ids": with_ids(arrays(count)).batch(made),
    }[kind]
    batches = read(data, read_in)
    assert all(len(batch) == read_in for batch in batches[:-1])
    x, y = arrays(count)
    np.testing.assert_array_equal(joined(batches, "x"), x)
    np.testing.assert_array_equal(joined(batches, "y"), y)
    np.testing.assert_array_equal(joined(batches, "ids"), np.arange(count))


def test_structured_inputs_and_labels_keep_their_structure():
    x, y = arrays()
    data = {"a": x, "b": (x + 1, x + 2)}, [y, y + 1], np.ones(10, "float32")
    for source in (
        data,
        tf.data.Dataset.from_tensor_slices(
            (data[0], tuple(data[1]), data[2])
        ).batch(3),
    ):
        batch = read(source)[1]
        np.testing.assert_array_equal(batch.x["a"], x[4:8])
        np.testing.assert_array_equal(batch.x["b"][1], x[4:8] + 2)
        np.testing.assert_array_equal(batch.y[1], y[4:8] + 1)
        np.testing.assert_array_equal(batch.sample_weight, np.ones(4))
        assert len(batch.data) == 3


def test_batch_without_weights_is_a_pair():
    x, y = arrays(3)
    batch = Batch(np.arange(3), x, y)
    assert len(batch.data) == 2
    assert batch.nbytes == x.nbytes + y.nbytes
    assert Batch(np.arange(3), x, y, y).nbytes == x.nbytes + 2 * y.nbytes


def test_doubles_become_what_keras_makes_of_them():
    x, y = arrays()
    batch = read((x.astype("float64"), y))[0]
    assert batch.x.dtype == keras.config.floatx()
    assert batch.y.dtype == y.dtype


def test_arrays_are_sliced_and_not_copied():
    x, y = arrays()
    assert np.shares_memory(read((x, y))[1].x, x)
    assert open_examples((x, y)).bytes_read_per_example == 0


def test_first_gives_as_many_as_there_are():
    for data in (arrays(3), sliced(3).batch(2)):
        examples = open_examples(data)
        assert len(examples.first(2)) == 2
        assert len(examples.first(7)) == 3


@pytest.mark.parametrize(
    ("dataset", "size", "expected"),
    [
        (sliced(10).batch(5, drop_remainder=True), 10, 10),
        (sliced(10).batch(3, drop_remainder=True), 9, 9),
        (sliced(10).batch(3), None, 12),
        (with_ids(arrays(10)).shuffle(10).batch(3), None, 12),
        (sliced(10).filter(lambda x, y: y > 20).batch(5), None, None),
    ],
)
def test_size_is_told_where_it_is_known_or_estimated(dataset, size, expected):
    examples = open_examples(dataset)
    assert (examples.size, examples.expected_size) == (size, expected)
    held = open_examples(arrays(7))
    assert (held.size, held.expected_size) == (7, 7)


def of_lengths(*lengths):
    """Batches of two sequences, of which no shape is known before."""
    return tf.data.Dataset.from_generator(
        lambda: ((np.ones((2, n)), np.zeros(2)) for n in lengths),
        output_signature=(
            tf.TensorSpec([None, None]),
            tf.TensorSpec([None]),
        ),
    )


def test_examples_of_open_shape_keep_their_own_batches():
    found = read(of_lengths(3, 3, 3), batch_size=4)
    assert [batch.x.shape for batch in found] == [(2, 3)] * 3
    np.testing.assert_array_equal(joined(found, "ids"), np.arange(6))


def test_examples_of_several_shapes_are_refused():
    message = row("unequal-shapes", "`train`...[(5,), ()] from id 4 ...[(3,), ")
    with pytest.raises(ValueError, match=message):
        read(of_lengths(3, 3, 5), batch_size=4)


def test_ids_are_positions_by_default():
    assert_ids_fit(with_ids(arrays()).batch(4), np.arange(10))
    assert_ids_fit(with_ids(sliced()).batch(4), np.arange(10))


def test_ids_come_from_an_array_or_a_dataset():
    given_ids = np.arange(10) * 7 + 3
    for ids in (
        given_ids,
        given_ids.tolist(),
        tf.data.Dataset.from_tensor_slices(given_ids),
    ):
        batches = read(with_ids(arrays(), ids).batch(4))
        np.testing.assert_array_equal(joined(batches, "ids"), given_ids)
        np.testing.assert_array_equal(joined(batches, "y"), arrays()[1])


def test_string_ids_come_back_as_text():
    names = np.array([f"é{i}" for i in range(10)])
    for ids in (names, tf.data.Dataset.from_tensor_slices(names)):
        batches = read(with_ids(arrays(), ids).batch(4))
        found = joined(batches, "ids")
        assert found.tolist() == names.tolist()


def test_ids_are_taken_out_of_a_dict_element():
    x, y = arrays()
    names = np.array([f"id-{i}" for i in range(10)])
    dataset = tf.data.Dataset.from_tensor_slices(
        {"image": x, "label": y, "tfds_id": names}
    )
    keyed = with_ids(dataset, "tfds_id")
    assert set(keyed.element_spec) == {"image", "label"}
    pairs = keyed.map(lambda element: (element["image"], element["label"]))
    batches = read(pairs.batch(4))
    assert joined(batches, "ids").tolist() == names.tolist()
    np.testing.assert_array_equal(joined(batches, "y"), y)


def test_ids_come_from_a_function_of_the_element():
    assert_ids_fit(with_ids(arrays(), lambda x, y: y // 10).batch(4))


def test_more_or_fewer_ids_than_examples_are_refused():
    with pytest.raises(
        ValueError, match=row("id-count", "3 ids for 10 examples")
    ):
        with_ids(arrays(), np.arange(3))
    with pytest.raises(
        ValueError, match=row("id-count", "11 ids for 10 examples")
    ):
        with_ids(sliced(), tf.data.Dataset.range(11))


@pytest.mark.parametrize("ids", [[0.5] * 10, np.zeros((10, 2), int)])
def test_ids_other_than_a_number_or_string_each_are_refused(ids):
    with pytest.raises(ValueError, match=row("id-type")):
        with_ids(arrays(), ids)


@pytest.mark.parametrize(
    ("dataset", "received"),
    [
        (sliced().map(lambda x, y: {"x": x, "y": y}), r"keys \['x', 'y'\]"),
        (sliced(), "TensorSpec"),
    ],
)
def test_an_id_key_that_elements_do_not_have_is_refused(dataset, received):
    with pytest.raises(ValueError, match=f"'tfds_id'.*{received}"):
        with_ids(dataset, "tfds_id")


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (lambda data: data.map(lambda x, y: (x, y)), np.arange(10)),
        (lambda data: data.filter(lambda x, y: y >= 30), np.arange(3, 10)),
        (lambda data: data.take(4), np.arange(4)),
        (lambda data: data.skip(4), np.arange(4, 10)),
        (lambda data: data.shard(2, 1), np.arange(1, 10, 2)),
        (lambda data: data.cache(), np.arange(10)),
        (lambda data: data.prefetch(2), np.arange(10)),
        (lambda data: data.repeat(2), np.tile(np.arange(10), 2)),
        (lambda data: data.batch(3).unbatch(), np.arange(10)),
        (lambda data: data.apply(lambda d: d.take(2)), np.arange(2)),
        (lambda data: data.with_options(tf.data.Options()), np.arange(10)),
    ],
    ids=[
        "map",
        "filter",
        "take",
        "skip",
        "shard",
        "cache",
        "prefetch",
        "repeat",
        "unbatch",
        "apply",
        "with_options",
    ],
)
def test_ids_survive(transform, expected):
    dataset = transform(with_ids(arrays()))
    assert isinstance(dataset, DatasetWithIds)
    assert_ids_fit(dataset.batch(4), expected)


def test_ids_survive_shuffling_that_differs_each_time():
    dataset = with_ids(arrays()).shuffle(10).batch(3).prefetch(1)
    assert_ids_fit(dataset)
    orders = {tuple(joined(read(dataset), "ids")) for _ in range(8)}
    assert len(orders) > 1
    assert {tuple(sorted(order)) for order in orders} == {tuple(range(10))}


def test_ids_survive_batches_being_mapped_and_rebatched():
    dataset = with_ids(arrays()).batch(4).map(lambda x, y: (x, y)).rebatch(3)
    assert_ids_fit(dataset, np.arange(10))


def test_readers_do_not_see_the_ids():
    dataset = with_ids(arrays()).batch(5)
    plain = sliced().batch(5)
    assert dataset.element_spec == plain.element_spec
    for (x, y), (expected_x, expected_y) in zip(dataset, plain, strict=True):
        np.testing.assert_array_equal(x, expected_x)
        np.testing.assert_array_equal(y, expected_y)
    assert int(dataset.cardinality()) == 2


def test_fit_is_the_same_with_ids_as_without():
    trained = []
    for dataset in (sliced().batch(5), with_ids(arrays()).batch(5)):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        model.fit(dataset, verbose=0)
        model.evaluate(dataset, verbose=0)
        trained.append(model.get_weights())
    for plain, with_id in zip(*trained, strict=True):
        np.testing.assert_array_equal(plain, with_id)


def test_sample_weights_are_kept_beside_ids():
    x, y = arrays()
    weight = np.linspace(0, 1, 10, dtype="float32")
    batches = read(with_ids((x, y, weight)).batch(3))
    np.testing.assert_array_equal(joined(batches, "sample_weight"), weight)


def test_dataset_that_shuffles_is_refused_with_its_remedy():
    with pytest.raises(
        ValueError, match=row("unstable-data", "`train`...with_ids")
    ):
        open_examples(sliced(100).shuffle(100).batch(10))


def test_dataset_that_augments_at_random_is_refused():
    rng = np.random.default_rng(0)

    def noisy(x, y):
        noise = tf.numpy_function(lambda: rng.normal(size=2), [], tf.float64)
        return x + tf.cast(tf.ensure_shape(noise, [2]), x.dtype), y

    dataset = sliced().map(noisy)
    with pytest.raises(ValueError, match=row("unstable-data", "augmentation")):
        open_examples(dataset.batch(5), name="test")


def test_shuffling_once_is_no_matter():
    dataset = sliced(100).shuffle(100, seed=1, reshuffle_each_iteration=False)
    first, second = (joined(read(dataset.batch(10)), "y") for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_text_inputs_keep_their_order():
    text = tf.data.Dataset.from_tensor_slices((["a", "bc"] * 5, np.arange(10)))
    assert len(read(text.batch(5))) == 3
    with pytest.raises(ValueError, match=row("unstable-data")):
        open_examples(text.repeat(10).shuffle(100).batch(50))


@pytest.mark.parametrize(
    "dataset",
    [
        sliced().batch(5).repeat(),
        with_ids(arrays()).repeat().batch(5),
    ],
    ids=["plain", "with ids"],
)
def test_infinite_dataset_is_refused(dataset):
    with pytest.raises(
        ValueError,
        match=row("endless-data", "`test`...`.take(steps_per_epoch)`"),
    ):
        open_examples(dataset, name="test")


@pytest.mark.parametrize(
    "data",
    [
        (np.zeros((0, 2)), np.zeros(0)),
        sliced().take(0).batch(5),
        with_ids(arrays()).take(0).batch(5),
    ],
    ids=["arrays", "tf.data", "with ids"],
)
def test_empty_data_is_refused(data):
    with pytest.raises(ValueError, match=row("empty-data", "`train`")):
        open_examples(data)


@pytest.mark.parametrize(
    "dataset", [sliced(), with_ids(arrays())], ids=["plain", "with ids"]
)
def test_unbatched_dataset_is_refused(dataset):
    with pytest.raises(ValueError, match=row("unbatched", "`train`....batch")):
        open_examples(dataset)


def of_unknown_rank(*arrays):
    """A dataset of slices of arrays, whose specification has no shapes."""

    def as_they_are(*slices):
        dtypes = [array.dtype for array in slices]
        return tf.py_function(lambda *parts: parts, slices, dtypes)

    return tf.data.Dataset.from_tensor_slices(arrays).map(as_they_are)


@pytest.mark.parametrize("has_ids", [False, True])
def test_batches_of_unknown_rank_are_read(has_ids):
    x, y = arrays()
    data = of_unknown_rank(x, y)
    assert data.element_spec[0].shape.rank is None
    data = (with_ids(data) if has_ids else data).batch(4)
    batches = read(data)
    np.testing.assert_array_equal(joined(batches, "x"), x)
    np.testing.assert_array_equal(joined(batches, "ids"), np.arange(10))


@pytest.mark.parametrize("first", ["vector", "text"])
def test_unbatched_examples_of_unknown_rank_are_refused(first):
    x, y = arrays()
    x = x if first == "vector" else np.array(list("abcdefghij"))
    with pytest.raises(ValueError, match=row("unbatched", "`train`....batch")):
        read(of_unknown_rank(x, y))


def test_ids_attached_to_batches_are_refused():
    with pytest.raises(ValueError, match="after `with_ids`"):
        open_examples(with_ids(sliced().batch(5)))


@pytest.mark.parametrize(
    "data",
    [
        (np.zeros((3, 2)), np.zeros(4)),
        (np.zeros((3, 2)), np.zeros(3), np.zeros(2)),
        ({"a": np.zeros(3), "b": np.zeros(2)}, np.zeros(3)),
        (np.zeros((3, 2)), np.zeros(())),
    ],
)
def test_parts_of_different_length_are_refused(data):
    with pytest.raises(ValueError, match=row("unequal-lengths")):
        open_examples(data)
    with pytest.raises(ValueError, match=row("unequal-lengths")):
        with_ids(data)


@pytest.mark.parametrize("inner", [2, None])
@pytest.mark.parametrize("has_ids", [False, True])
def test_batches_whose_parts_differ_in_length_are_refused(inner, has_ids):
    def batches():
        yield np.zeros((4, 2), "float32"), np.zeros(4, "float32")
        yield np.zeros((4, 2), "float32"), np.zeros(3, "float32")

    x, y = (tf.TensorSpec(shape) for shape in ([None, inner], [None]))
    data = tf.data.Dataset.from_generator(batches, output_signature=(x, y))
    if has_ids:
        data = with_ids(data, lambda x, y: tf.range(tf.shape(x)[0]))
    message = row("unequal-lengths", "`train`...(4, 2), (3,)")
    with pytest.raises(ValueError, match=message):
        read(data)


def test_ragged_and_sparse_tensors_are_refused_with_their_remedy():
    ragged = tf.ragged.constant([[1.0, 2.0], [3.0]])
    sparse = tf.sparse.from_dense(np.eye(2, dtype="float32"))
    for inputs in (ragged, sparse):
        data = tf.data.Dataset.from_tensor_slices((inputs, [0, 1])).batch(2)
        with pytest.raises(ValueError, match=row("ragged-data", "to_tensor")):
            open_examples(data)


@pytest.mark.parametrize("x", [None, [], {"a": None}])
def test_data_without_inputs_is_refused(x):
    with pytest.raises(TypeError, match="`train` holds no inputs"):
        open_examples((x, np.zeros(3)))


@pytest.mark.parametrize(
    "data",
    [np.zeros((3, 2)), None, [np.zeros(3), np.zeros(3)], (np.zeros(3),), "x"],
    ids=["array", "None", "list", "one", "text"],
)
def test_anything_else_is_refused_with_what_was_expected(data):
    with pytest.raises(TypeError, match=r"`train`.*\(x, y\).*Received"):
        open_examples(data)


@pytest.mark.parametrize(
    "dataset",
    [
        tf.data.Dataset.from_tensor_slices(arrays()[0]).batch(5),
        with_ids(tf.data.Dataset.from_tensor_slices(arrays()[0])).batch(5),
    ],
    ids=["plain", "with ids"],
)
def test_dataset_without_labels_is_refused(dataset):
    with pytest.raises(ValueError, match=row("no-labels", "`train`")):
        open_examples(dataset)


def test_chosen_examples_come_in_full_batches():
    examples = select(open_examples(arrays(100)), np.array([90, 2, 3, 40, 41]))
    batches = list(examples.batches(4))
    assert [batch.ids.tolist() for batch in batches] == [[2, 3, 40, 41], [90]]
    np.testing.assert_array_equal(
        joined(batches, "x")[:, 1], [2, 3, 40, 41, 90]
    )
    np.testing.assert_array_equal(joined(batches, "y")[-1], 900)


def test_a_digest_tells_examples_apart():
    def of(x, ids=(0, 1), start=""):
        return content_digest([Batch(np.array(ids), np.array(x))], start)

    first = of(["a", "bc"])
    assert first == of(["a", "bc"])
    others = [
        of(["ab", "c"]),
        of(["a", "bc"], (0, 2)),
        of(["a", "bc"], start="q"),
    ]
    assert first not in others
    objects = content_digest(
        [Batch(np.array([0, 1]), np.array([b"a", b"bc"], object))]
    )
    again = content_digest(
        [Batch(np.array([0, 1]), np.array([b"a", b"b" + b"c"], object))]
    )
    assert objects == again


def test_a_digest_takes_any_text():
    def of(*texts):
        return content_digest([Batch(np.arange(2), np.array(texts, object))])

    assert of("é", "x") == of("é", "x") != of("e", "x")
    assert of(b"a", b"b") != of(b"a\0", b"b")


@pytest.mark.parametrize("texts", [False, True])
def test_a_digest_does_not_depend_on_the_batches(texts):
    x, y = arrays(7)
    ids = [f"{'n' * at}" for at in range(7)] if texts else list(range(7))
    whole = Batch(np.array(ids), x, y)
    cut = [
        Batch(np.array(ids[rows]), x[rows], y[rows])
        for rows in (slice(0, 3), slice(3, 4), slice(4, 7))
    ]
    assert content_digest([whole]) == content_digest(cut)
    assert content_digest(cut) != content_digest(cut[::-1])
