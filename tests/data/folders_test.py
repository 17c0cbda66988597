"""Folders of files, as the utilities of Keras make datasets of them."""

import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data import provenance
from keras_tracin.data.example_ids import DatasetWithIds
from keras_tracin.data.examples import open_examples
from keras_tracin.methods.unrolled.batches import _check_one_order
from tests.error_rows import row

COUNT = 14


def value_of(name):
    """The number that the file of a name holds."""
    path = pathlib.PurePath(name)
    return 10 * "ab".index(path.parent.name) + int(path.stem)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Folders of images, texts and sounds; each file holds its number."""
    root = tmp_path_factory.mktemp("files")
    for at in range(COUNT):
        label, number = "ab"[at % 2], at // 2
        for kind in ("images", "texts", "sounds"):
            (root / kind / label).mkdir(parents=True, exist_ok=True)
        value = value_of(f"{label}/{number}")
        image = np.full((4, 4, 1), value, "uint8")
        path = root / "images" / label / f"{number}.png"
        tf.io.write_file(str(path), tf.io.encode_png(image))
        path = root / "texts" / label / f"{number}.txt"
        path.write_text(str(value), encoding="utf-8")
        wave = np.full((6, 1), value / 2**15, "float32")
        path = root / "sounds" / label / f"{number}.wav"
        tf.io.write_file(str(path), tf.audio.encode_wav(wave, 8000))
    return root


def images(directory, **options):
    return keras.utils.image_dataset_from_directory(
        directory / "images",
        image_size=(4, 4),
        color_mode="grayscale",
        batch_size=4,
        verbose=False,
        **options,
    )


def texts(directory):
    data = keras.utils.text_dataset_from_directory(
        directory / "texts", batch_size=4, verbose=False
    )
    return data.map(lambda x, y: (tf.strings.to_number(x)[:, None], y))


def sounds(directory):
    data = keras.utils.audio_dataset_from_directory(
        directory / "sounds",
        batch_size=4,
        output_sequence_length=6,
        label_mode="binary",
        verbose=False,
    )
    return data.map(lambda x, y: (x * 2**15, y))


def assert_files_are_ids(data, count=COUNT):
    """Each id is the file that the example beside it comes from."""
    ids = []
    for batch in open_examples(data).batches(5):
        first = np.asarray(batch.x).reshape(len(batch), -1)[:, 0]
        np.testing.assert_allclose(first, [value_of(i) for i in batch.ids])
        labels = [value_of(i) // 10 for i in batch.ids]
        np.testing.assert_array_equal(np.ravel(batch.y), labels)
        ids += batch.ids.tolist()
    assert len(set(ids)) == len(ids) == count
    return ids


@pytest.mark.parametrize("kind", [images, texts, sounds])
def test_files_are_ids_though_the_folder_shuffles(kind, directory):
    data = kind(directory)
    ids = assert_files_are_ids(data)
    assert all(pathlib.Path(name).is_file() for name in ids)
    # Made again, it has another seed.
    assert ids == assert_files_are_ids(kind(directory)) == sorted(ids)


def test_a_folder_that_does_not_shuffle_keeps_its_order(directory):
    data = images(
        directory, shuffle=False, validation_split=0.4, subset="training"
    )
    assert assert_files_are_ids(data, 9) == data.file_paths


@pytest.mark.parametrize("seed", [0, 1])
def test_files_are_ids_of_a_part_of_a_folder(seed, directory):
    parts = images(directory, validation_split=0.4, subset="both", seed=seed)
    train, test = (
        set(assert_files_are_ids(p, n))
        for p, n in zip(parts, (9, 5), strict=True)
    )
    assert not train & test


def test_transformations_that_keep_the_order_of_files_are_followed(directory):
    options = tf.data.Options()
    options.deterministic = False
    layer = keras.layers.Rescaling(2.0)
    data = (
        images(directory)
        .with_options(options)
        .cache()
        .shuffle(100)
        .map(lambda x, y: (layer(x) / 2, y), tf.data.AUTOTUNE)
        .prefetch(2)
    )
    assert_files_are_ids(data)


def test_a_list_of_files_that_shuffles_is_followed(directory):
    names = sorted(map(str, (directory / "texts").rglob("*.txt")))
    labels = [value_of(name) // 10 for name in names]

    def read(name, label):
        return tf.strings.to_number(tf.io.read_file(name))[None], label

    files = tf.data.Dataset.from_tensor_slices((names, labels))
    data = files.shuffle(100).map(read).batch(4, drop_remainder=True)
    assert assert_files_are_ids(data, 12) == names[:12]
    assert open_examples(data).size == 12
    in_order = open_examples(files.map(read).batch(4))
    assert next(in_order.batches(4)).ids.tolist() == [0, 1, 2, 3]


def test_the_number_of_files_is_known(directory):
    assert open_examples(images(directory)).size == COUNT
    assert open_examples(images(directory, shuffle=False)).size == COUNT


@pytest.mark.parametrize(
    "transform",
    [
        lambda data: data.take(2),
        lambda data: data.unbatch().batch(3),
        lambda data: data.filter(lambda x, y: True),
    ],
    ids=["take", "unbatch", "filter"],
)
def test_what_loses_the_order_of_files_is_refused(transform, directory):
    data = transform(images(directory))
    with pytest.raises(ValueError, match=row("transformed-folder")):
        open_examples(data)
    with pytest.raises(ValueError, match=row("mapped-folder")):
        kt.with_ids(data)


def reversed_rows(x, y):
    return tf.reverse(x, [0]), tf.reverse(y, [0])


def sorted_rows(x, y):
    order = tf.argsort(tf.reduce_mean(x, [1, 2, 3]))
    return tf.gather(x, order), tf.gather(y, order)


def centred(x, y):
    return x - tf.reduce_mean(x, axis=0), y


@pytest.mark.parametrize("move", [reversed_rows, sorted_rows, centred])
@pytest.mark.parametrize("shuffle", [True, False])
def test_maps_of_batches_that_move_or_mix_rows_are_refused(
    move, shuffle, directory
):
    data = images(directory, shuffle=shuffle).map(move)
    with pytest.raises(ValueError, match=row("moved-rows")):
        open_examples(data)


def test_augmentation_of_a_folder_is_refused(directory):
    rng = np.random.default_rng(0)

    def noisy(x, y):
        noise = tf.numpy_function(lambda: rng.normal(), [], tf.float64)
        return x + tf.cast(noise, tf.float32), y

    data = images(directory).map(noisy)
    with pytest.raises(ValueError, match=row("unstable-data", "augmentation")):
        open_examples(data)


@pytest.mark.parametrize("kind", ["images", "sounds"])
def test_ids_are_attached_to_a_folder_that_goes_on_shuffling(kind, directory):
    plain = images(directory)
    if kind == "sounds":
        plain = keras.utils.audio_dataset_from_directory(
            directory / "sounds", batch_size=4, verbose=False
        )
    data = kt.with_ids(plain)
    assert isinstance(data, DatasetWithIds)
    assert data.element_spec == plain.element_spec
    assert int(data.cardinality()) == int(plain.cardinality())
    factor = 2**15 if kind == "sounds" else 1
    scaled = data.map(lambda x, y: (factor * x, y)).prefetch(1)
    orders = {tuple(assert_files_are_ids(scaled)) for _ in range(4)}
    assert len(orders) > 1


def test_scores_are_those_of_the_files_in_order(directory, tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            keras.layers.Rescaling(1 / 20),
            keras.layers.Flatten(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile("sgd", "binary_crossentropy")
    data = images(directory)
    model.fit(data, callbacks=[kt.TracInCheckpoint(tmp_path)], verbose=0)
    scores = kt.TracIn(model, data, tmp_path).self_influence(verbose=0)
    numbers = [value_of(name) for name in scores.ids]
    x = np.ones((1, 4, 4, 1)) * np.reshape(numbers, (-1, 1, 1, 1))
    arrays = x.astype("float32"), np.array(numbers) // 10
    expected = kt.TracIn(model, arrays, tmp_path).self_influence(verbose=0)
    np.testing.assert_allclose(scores.scores, expected.scores, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [4, None])
def test_augmentation_with_a_seed_is_refused(batch_size, directory):
    folder = keras.utils.image_dataset_from_directory(
        directory / "images",
        image_size=(4, 4),
        batch_size=batch_size,
        verbose=False,
    )

    def brighten(x, y):
        return x + tf.random.uniform([], seed=1), y

    data = folder.map(brighten)
    with pytest.raises(ValueError, match=row("placed-example", "`train`")):
        open_examples(data if batch_size else data.batch(4))


def test_other_versions_of_tensorflow_need_ids(directory, monkeypatch):
    folder = images(directory)
    monkeypatch.setattr(provenance, "_MEMBERS", ("_inputs", "_renamed"))
    for read in (open_examples, kt.with_ids):
        with pytest.raises(
            NotImplementedError,
            match=row("unknown-provenance", tf.__version__, "kt.with_ids"),
        ):
            read(folder)
    data = kt.with_ids(folder.unbatch(), np.arange(COUNT)).batch(4)
    ids = [batch.ids for batch in open_examples(data).batches(4)]
    np.testing.assert_array_equal(np.concatenate(ids), np.arange(COUNT))


def test_a_folder_that_shuffles_tells_no_order_of_training(directory):
    _check_one_order(images(directory, shuffle=False))
    with pytest.raises(ValueError, match="another order each time"):
        _check_one_order(images(directory))
