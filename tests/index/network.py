"""A small network with its data, and what indexes are compared by."""

import keras
import numpy as np

import keras_tracin as kt

FINGERPRINT = "fingerprint.npz"  # numbers that are alike up to rounding
NUM_TRAIN, NUM_WEIGHTS = 600, 6 * 5 + 5 + 5 * 3 + 3


def build():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, activation="tanh"),
            keras.layers.Dense(3),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def examples(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6)).astype("float32")
    return x, rng.integers(0, 3, count)


TRAIN, TEST, MORE = examples(NUM_TRAIN, 0), examples(4, 1), examples(90, 2)


def train_twice(make_directory):
    """A model, and two runs of it, of two checkpoints each."""
    model, runs = build(), []
    for name in ("first", "second"):
        runs.append(make_directory(name))
        callback = kt.TracInCheckpoint(runs[-1])
        model.fit(*TRAIN, epochs=2, callbacks=[callback], verbose=0)
    return model, runs


def contents(directory):
    """The bytes of all files of an index, but for the fingerprint."""
    return {
        path.relative_to(directory): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != FINGERPRINT
    }


def same(found, expected, rtol=1e-4):
    """Asserts that two results name the same examples, with like scores."""
    for side in ("proponents", "opponents"):
        a, b = getattr(found, side), getattr(expected, side)
        np.testing.assert_array_equal(a.ids, b.ids)
        np.testing.assert_allclose(a.scores, b.scores, rtol=rtol)


def all_scores(index, test=TEST):
    """The scores of all rows, in their order."""
    top = index.query(test, len(index))
    order = np.argsort(top.proponents.ids, axis=1)
    return np.take_along_axis(top.proponents.scores, order, axis=1)


def change_a_bit(path):
    """Damages a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
