"""Explains predictions in milliseconds, by an index of training digits.

    python -m examples.low_latency --output_dir=out/low_latency

Trains a small network, writes sketches of the gradients of all training digits
at every checkpoint to an index, opens the index as a service would, and queries
it for one test digit after another. The digits are those of MNIST if
`--data_dir`, or `tfds` in the directory KERAS_TRACIN_DATA, has them in the form
of TensorFlow Datasets; otherwise those of scikit-learn.
"""

import os
import pathlib
import shutil
import time

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from examples import _common

_OUTPUT_DIR = _common.output_dir("out/low_latency")
_DATA_DIR = _common.data_dir()
_SEED = _common.seed()
_NUM_TRAIN = _common.num_train(60_000)
_NUM_QUERIES = _common.num_queries(100)
_EPOCHS = _common.epochs(5)
_K = _common.k(5)
_DIM = flags.DEFINE_integer(
    "dim",
    1024,
    "Length of a sketch of a gradient at a checkpoint.",
    lower_bound=1,
)


def main(_):
    output = pathlib.Path(_OUTPUT_DIR.value)
    keras.utils.set_random_seed(_SEED.value)
    train, test = load_images()
    print(f"{len(train[0]):,} training digits, {train[0].shape[1:]} each.")

    model = build_model(train[0].shape[1:])
    checkpoints = kt.TracInCheckpoint(output / "run", overwrite=True)
    epochs = measure_seconds(
        lambda: model.fit(
            *train, epochs=_EPOCHS.value, callbacks=[checkpoints], verbose=0
        )
    )
    shutil.rmtree(output / "index", ignore_errors=True)
    tracin = kt.TracIn(model, train, output / "run")
    building = measure_seconds(
        lambda: kt.InfluenceIndex.build(
            tracin, output / "index", projection=kt.TensorSketch(_DIM.value)
        )
    )
    print(
        f"Training took {epochs:.0f} s, the index {building:.0f} s "
        f"({building / epochs:.1f} times as long)."
    )

    # A service needs the model, the run and the index.
    index = kt.InfluenceIndex(output / "index", model)
    print(index)
    first = measure_seconds(lambda: index.query(single(test, 0), _K.value))
    print(f"The first answer takes {first:.1f} s: it loads and compiles.")
    times = []
    for at in range(1, min(_NUM_QUERIES.value, len(test[0]))):
        start = time.perf_counter()
        index.query(single(test, at), _K.value)
        times.append(1e3 * (time.perf_counter() - start))
    print(
        f"{len(times)} more, one by one: {np.median(times):.1f} ms each in "
        f"the median, {np.max(times):.1f} ms at most.\n"
    )
    print_answers(index, model, train, test)


def load_images():
    """Loads digits `[n, rows, columns, 1]` from 0 to 1, with labels."""
    data_dir = _DATA_DIR.value or _common.offline("tfds")
    if data_dir and os.path.isdir(os.path.join(data_dir, "mnist")):
        return [
            _common.load_images("mnist", split, data_dir)
            for split in (f"train[:{_NUM_TRAIN.value}]", "test[:1000]")
        ]
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[..., None].astype("float32") / 16
    split = min(1297, _NUM_TRAIN.value)
    return (
        (images[:split], digits.target[:split]),
        (images[1297:], digits.target[1297:]),
    )


def build_model(shape):
    """A small convolutional network, compiled."""
    model = keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    return _common.compile_classifier(model, keras.optimizers.SGD(0.05))


def single(examples, at):
    """A batch of the single example at this index."""
    return tuple(part[at : at + 1] for part in examples)


def measure_seconds(call):
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def print_answers(index, model, train, test):
    """Explains the test digits with the highest loss."""
    x, y = (part[: _NUM_QUERIES.value] for part in test)
    predicted = _common.predictions(model, x)
    names = [f"{label} (number {i})" for i, label in enumerate(train[1])]
    for at in np.argsort(-_common.losses(model, x, y))[:3]:
        top = index.query(single(test, at), _K.value)
        print(f"Test digit {at}, a {y[at]}, taken for {predicted[at]}")
        _common.print_top(top, 0, names)


if __name__ == "__main__":
    app.run(main)
