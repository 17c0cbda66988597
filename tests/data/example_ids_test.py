"""What becomes of ids under every method of `tf.data.Dataset`."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.example_ids import _READERS, DatasetWithIds
from keras_tracin.data.examples import open_examples, select
from keras_tracin.data.ids import check_unique
from tests.error_rows import row

COUNT = 6
NAMES = np.array([f"name {at}" for at in range(COUNT)])
# The name of an example follows from its content: x[0] is its number.
X = np.arange(COUNT, dtype="float32")[:, None] * np.ones(2, "float32")
Y = np.arange(COUNT, dtype="float32")


def named():
    return kt.with_ids((X, Y), NAMES)


def assert_ids_fit(dataset, count=COUNT):
    """Each id is that of its example, whatever the order."""
    assert isinstance(dataset, DatasetWithIds)
    seen = []
    for batch in open_examples(dataset).batches(4):
        expected = [f"name {int(value)}" for value in np.asarray(batch.y)]
        assert batch.ids.tolist() == expected
        seen += expected
    assert len(seen) == count


def ragged():
    """Examples whose `x` has as many entries as their number, and one."""
    dataset = tf.data.Dataset.range(COUNT).map(
        lambda at: (
            tf.cast(tf.range(at + 1), tf.float32),
            tf.cast(at, tf.float32),
        )
    )
    return kt.with_ids(dataset, NAMES)


KEEPING = {
    "apply": lambda: (
        named()
        .batch(2)
        .apply(tf.data.experimental.assert_cardinality(3))
        .apply(lambda dataset: dataset.prefetch(1))
    ),
    "batch": lambda: named().shuffle(6).batch(4),
    "bucket_by_sequence_length": lambda: (
        ragged()
        .bucket_by_sequence_length(lambda x, y: tf.shape(x)[0], [4], [2, 2])
        .map(lambda x, y: (tf.reduce_sum(x, 1, keepdims=True), y))
    ),
    "cache": lambda: named().cache().shuffle(6).batch(4),
    "concatenate": lambda: (
        named().take(2).concatenate(named().skip(2)).batch(2)
    ),
    "enumerate": lambda: (
        named().enumerate(5).map(lambda at, pair: pair).shuffle(6).batch(4)
    ),
    "filter": lambda: named().filter(lambda x, y: y > -1).batch(4),
    "group_by_window": lambda: named().group_by_window(
        lambda x, y: tf.cast(y, tf.int64) % 2,
        lambda key, window: window.batch(3),
        window_size=3,
    ),
    "ignore_errors": lambda: named().ignore_errors().batch(4),
    "map": lambda: named().map(lambda x, y: (x + 1, y)).batch(4),
    "padded_batch": lambda: (
        ragged().shuffle(6).padded_batch(3, padded_shapes=([COUNT], []))
    ),
    "prefetch": lambda: named().batch(4).prefetch(1),
    "ragged_batch": lambda: (
        ragged()
        .ragged_batch(4)
        .map(lambda x, y: (x.to_tensor(shape=[None, COUNT]), y))
    ),
    "rebatch": lambda: named().batch(2).rebatch(3),
    "repeat": lambda: named().repeat(1).batch(4),
    "scan": lambda: (
        named()
        .scan(np.int64(0), lambda state, pair: (state + 1, pair))
        .batch(4)
    ),
    "shard": lambda: named().shard(1, 0).batch(4),
    "shuffle": lambda: named().shuffle(6).batch(4),
    "skip": lambda: named().skip(0).batch(4),
    "take": lambda: named().take(6).batch(4),
    "take_while": lambda: named().take_while(lambda x, y: y < 9).batch(4),
    "unbatch": lambda: named().batch(2).unbatch().batch(4),
    "with_options": lambda: named().batch(4).with_options(tf.data.Options()),
}
REFUSED = {
    "flat_map": lambda data: data.flat_map(
        lambda x, y: tf.data.Dataset.from_tensors((x, y))
    ),
    "interleave": lambda data: data.interleave(
        lambda x, y: tf.data.Dataset.from_tensors((x, y))
    ),
    "rejection_resample": lambda data: data.rejection_resample(
        lambda x, y: tf.cast(y, tf.int32) % 2, [0.5, 0.5]
    ),
    "save": lambda data: data.save("not written"),
    "sparse_batch": lambda data: data.sparse_batch(2, [2]),
    "unique": lambda data: data.unique(),
    "window": lambda data: data.window(2),
}


def methods():
    return {
        name
        for name in dir(tf.data.Dataset)
        if not name.startswith("_")
        and inspect.isfunction(inspect.getattr_static(tf.data.Dataset, name))
    }


def test_every_method_of_a_dataset_is_known_here():
    # `snapshot` has a test of its own, as it needs a directory.
    known = KEEPING.keys() | REFUSED.keys() | _READERS | {"snapshot"}
    assert methods() == known
    inherited = {n for n in methods() if n not in vars(DatasetWithIds)}
    assert inherited <= _READERS


@pytest.mark.parametrize("name", KEEPING)
def test_ids_stay_with_their_examples(name):
    assert_ids_fit(KEEPING[name]())


@pytest.mark.parametrize("name", REFUSED)
def test_methods_that_would_lose_ids_are_refused(name):
    with pytest.raises(ValueError, match=row("lost-ids", f"`{name}`")):
        REFUSED[name](named())


def test_a_snapshot_keeps_ids(tmp_path):
    assert_ids_fit(named().snapshot(str(tmp_path)).batch(4))


def test_a_method_of_a_later_tensorflow_is_refused(monkeypatch):
    import importlib

    import keras_tracin.data.example_ids as module

    monkeypatch.setattr(
        tf.data.Dataset, "fold", lambda self: self, raising=False
    )
    spec = importlib.util.spec_from_file_location("again", module.__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    dataset = again.DatasetWithIds(named().paired)
    with pytest.raises(ValueError, match=row("lost-ids", "`fold`")):
        dataset.fold()


@pytest.mark.parametrize("fixed", [False, True])
def test_padding_is_as_without_ids(fixed):
    options = {"padding_values": (np.float32(-1), None)} if fixed else {}
    plain = ragged().plain.padded_batch(4, **options)
    ours = ragged().padded_batch(4, **options)
    for expected, actual in zip(plain, ours, strict=True):
        for one, other in zip(expected, actual, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "lose",
    [
        lambda data: tf.data.Dataset.zip(data, data),
        lambda data: tf.data.Dataset.zip(data, data).map(lambda a, b: a),
        lambda data: data.plain.concatenate(data),
        lambda data: tf.data.Dataset.sample_from_datasets([data, data]),
        lambda data: tf.data.Dataset.choose_from_datasets(
            [data], tf.data.Dataset.from_tensors(np.int64(0))
        ),
    ],
    ids=["zip", "map of zip", "concatenate", "sample", "choose"],
)
def test_a_dataset_that_lost_its_ids_is_refused(lose):
    with pytest.raises(ValueError, match=row("zipped-ids")):
        open_examples(lose(named().batch(3)).prefetch(1))


def test_a_dataset_without_ids_cannot_be_appended():
    with pytest.raises(ValueError, match=row("appended-ids")):
        named().concatenate(named().plain)
    with pytest.raises(ValueError, match="ids of one type"):
        named().concatenate(kt.with_ids((X, Y)))


def test_a_function_that_loses_ids_is_refused():
    with pytest.raises(ValueError, match=row("lost-ids", "`apply`")):
        named().apply(
            lambda data: tf.data.Dataset.zip(data, data).map(
                lambda a, b: (a[0], b[1])
            )
        )
    with pytest.raises(ValueError, match=row("lost-ids", "`group_by_wind")):
        named().group_by_window(
            lambda x, y: tf.constant(0, tf.int64),
            lambda key, window: window.plain.batch(2),
            window_size=2,
        )


def test_readers_see_elements_without_ids():
    data = named().batch(4)
    x, y = next(iter(data.as_numpy_iterator()))
    assert (x.shape, y.shape) == ((4, 2), (4,))
    total = data.reduce(0.0, lambda state, pair: state + tf.reduce_sum(pair[1]))
    assert float(total) == Y.sum()
    assert int(data.cardinality()) == 2


def test_ids_can_be_given_anew():
    again = kt.with_ids(named(), [10 * at for at in range(COUNT)]).batch(COUNT)
    (batch,) = open_examples(again).batches(COUNT)
    assert batch.ids.tolist() == [10 * at for at in range(COUNT)]


def test_ids_that_are_no_text_are_named():
    odd = np.array([b"one", b"\xff\xfe", b"three"], object)
    with pytest.raises(
        ValueError, match=row("id-bytes", r"Received b'\xff\xfe' for the 2th")
    ):
        kt.with_ids((X[:3], Y[:3]), odd)
    ids = tf.data.Dataset.from_tensor_slices(odd)
    data = kt.with_ids(
        tf.data.Dataset.from_tensor_slices((X[:3], Y[:3])), ids
    ).batch(3)
    with pytest.raises(ValueError, match=row("id-bytes")):
        list(open_examples(data).batches(3))


def test_ids_in_any_script_are_text():
    names = ["naïve", "日本", "😀"]
    data = kt.with_ids((X[:3], Y[:3]), names).batch(3)
    (batch,) = open_examples(data).batches(3)
    assert batch.ids.tolist() == names


def test_ids_that_occur_twice_select_nothing():
    data = open_examples(kt.with_ids((X, Y), [1, 2, 2, 3, 4, 5]).batch(2))
    with pytest.raises(
        ValueError, match=row("repeated-ids", "Received [2] more than once")
    ):
        list(select(data, np.array([2, 3])).batches(2))
    selected = list(select(data, np.array([1, 3])).batches(2))
    assert [batch.ids.tolist() for batch in selected] == [[1, 3]]
    check_unique(np.array([1, 2]), "train")
