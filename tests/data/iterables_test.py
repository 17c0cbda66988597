"""Examples of generators and loaders."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tracin as kt
from keras_tracin.data.examples import open_examples
from tests.error_rows import row

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 3)).astype("float32")
Y = RNG.integers(0, 2, 11)


def batches(size=4):
    for start in range(0, len(X), size):
        yield X[start : start + size], Y[start : start + size]


def endless():
    return itertools.cycle(batches())


def noisy():
    for x, y in batches():
        yield x + np.random.normal(size=x.shape), y


def assert_is_all(data, estimate=None):
    """The examples of the data are all, in their order."""
    examples = open_examples(data)
    assert (examples.size, examples.expected_size) == (None, estimate)
    read = list(examples.batches(5))
    ids, x, y = (
        np.concatenate([np.asarray(getattr(batch, part)) for batch in read])
        for part in ("ids", "x", "y")
    )
    np.testing.assert_array_equal(ids, np.arange(11))
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(y, Y)


@pytest.mark.parametrize(
    "data",
    [batches, lambda: batches(3), lambda: itertools.islice(endless(), 3)],
)
def test_the_function_of_a_generator_is_read_again_and_again(data):
    assert_is_all(data)


def test_scores_are_those_of_the_same_arrays(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    callbacks = [kt.TracInCheckpoint(tmp_path)]
    model.fit(batches(), steps_per_epoch=3, callbacks=callbacks, verbose=0)
    scores = kt.TracIn(model, batches, tmp_path).influence(batches, verbose=0)
    arrays = kt.TracIn(model, (X, Y), tmp_path)
    expected = arrays.influence((X, Y), verbose=0)
    np.testing.assert_allclose(scores.scores, expected.scores, 1e-5, 1e-6)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (batches(), TypeError, row("generator", "`lambda: batches(...)`")),
        (lambda at: batches(), TypeError, row("generator-function")),
        (lambda: (X, Y), TypeError, row("generator-function", "a tuple")),
        (noisy, ValueError, row("unstable-batches", "`noisy`")),
        (lambda: iter([]), ValueError, row("empty-data", "`<lambda>`")),
    ],
)
def test_what_cannot_be_read_again_is_refused(data, error, message):
    with pytest.raises(error, match=message):
        open_examples(data)


def grain_source():
    grain = pytest.importorskip("grain")
    return grain.MapDataset.source(list(zip(X, Y, strict=True)))


def test_datasets_of_grain_are_read_in_their_order():
    source = grain_source()
    assert_is_all(source.batch(4), estimate=12)
    assert_is_all(source.batch(4).to_iter_dataset())
    shuffled = open_examples(source.shuffle(seed=1).batch(4))
    first, again = (next(shuffled.batches(11)).y for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_a_dataset_of_grain_that_repeats_is_refused():
    with pytest.raises(ValueError, match=row("endless-grain")):
        open_examples(grain_source().repeat().batch(4))


def test_a_folder_in_the_format_of_grain_is_refused(tmp_path):
    pytest.importorskip("grain")
    for name in ("a/1.png", "b/1.png"):
        image = tf.io.encode_png(np.zeros((4, 4, 3), "uint8"))
        (tmp_path / name).parent.mkdir()
        tf.io.write_file(str(tmp_path / name), image)
    data = keras.utils.image_dataset_from_directory(
        tmp_path, image_size=(4, 4), format="grain", verbose=False
    )
    with pytest.raises(ValueError, match=row("grain-folder")):
        open_examples(data)


def loader(**options):
    data = pytest.importorskip("torch.utils.data")
    return data.DataLoader(list(zip(X, Y, strict=True)), 4, **options)


def test_a_loader_of_pytorch_is_read_in_its_order():
    assert_is_all(loader(), estimate=12)


def test_a_loader_of_pytorch_that_shuffles_is_refused():
    with pytest.raises(
        ValueError, match=row("unstable-batches", "shuffle=False")
    ):
        open_examples(loader(shuffle=True))
