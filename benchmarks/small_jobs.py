"""First calls of every method on small jobs, in epochs of `model.fit`.

    python -m benchmarks.small_jobs --models=cnn,recurrent

What a person waits for who tries a method once: tracing, fitting and the first
look included. Each call is of a new method; the unit is the second epoch of
`fit` of the same model.

*cnn*: two convolutions and two dense layers, 6,000 digits of MNIST (random
pixels where it is absent), 20 queries, one checkpoint. *recurrent*: a
bidirectional LSTM over texts that the model vectorises, 2,000 examples.
"""

import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from keras import layers

import keras_tracin as kt
from benchmarks import _models

_MODELS = flags.DEFINE_list("models", ["cnn", "recurrent"], "What to measure.")
_METHODS = flags.DEFINE_list(
    "methods", [], "Methods to measure; all by default."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 3, "Runs of which the median is taken.", lower_bound=1
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    os.environ.get("KERAS_TRACIN_DATA", "../shared/data"),
    "Folder that holds tfds/mnist. Without it the input is random.",
)

NUM_QUERIES = 20
_WORDS = 500


def _cnn():
    workload = _models.WORKLOADS["cnn"]
    folder = _models.mnist_in(_DATA_DIR.value)
    train, test = _models.load_examples(workload, 6_000, folder)
    return workload.compiled(), train, test


def _recurrent():
    random = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(_WORDS)])
    texts = np.array([" ".join(random.choice(words, 30)) for _ in range(2_000)])
    labels = random.integers(2, size=len(texts))
    vectorize = layers.TextVectorization(
        _WORDS + 2, output_sequence_length=30, vocabulary=words.tolist()
    )
    model = keras.Sequential(
        [
            keras.Input((), dtype="string"),
            vectorize,
            layers.Embedding(_WORDS + 2, 32, mask_zero=True),
            layers.Bidirectional(layers.LSTM(32)),
            layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(), loss)
    data = tf.constant(texts), labels  # strings of NumPy are not taken by fit
    return model, data, data


MODELS = {"cnn": _cnn, "recurrent": _recurrent}


def calls(model, train, test, run) -> dict[str, Callable[[str], object]]:
    """First calls, each of a directory that is new."""

    def influence(queries, **options):
        method = kt.InfluenceFunctions(model, train, damping=0.1, **options)
        return method.influence(queries, verbose=0)

    def index(directory):
        return kt.InfluenceIndex.build(
            kt.TracIn(model, train, run), directory
        ).query(test, 5)

    one = tuple(part[:1] for part in test)
    return {
        "TracIn influence": lambda _: kt.TracIn(model, train, run).influence(
            test, verbose=0
        ),
        "TracIn self-influence": lambda _: kt.TracIn(
            model, train, run
        ).self_influence(verbose=0),
        "TRAK": lambda _: kt.TRAK(
            model, train, run, projection=kt.TensorSketch(512)
        ).influence(test, verbose=0),
        "index built and asked": index,
        "EK-FAC": lambda _: influence(test, curvature="ekfac"),
        "EK-FAC self-influence": lambda _: kt.InfluenceFunctions(
            model, train, damping=0.1, curvature="ekfac"
        ).self_influence(verbose=0),
        "influence functions by default for one query": lambda _: influence(
            one
        ),
        "representer points": lambda _: kt.RepresenterPoints(
            model, train, l2=0.01, verbose=0
        ).influence(test, verbose=0),
    }


def measure(name: str) -> None:
    """Prints a row for each method."""
    model, train, test = MODELS[name]()
    test = tuple(part[:NUM_QUERIES] for part in test)
    with tempfile.TemporaryDirectory() as folder:
        run = pathlib.Path(folder, "run")
        model.fit(
            *train,
            verbose=0,
            callbacks=[kt.TracInCheckpoint(run)],
        )
        epochs = []
        twin = keras.models.clone_model(model)
        twin.compile(keras.optimizers.SGD(0.01), model.loss)
        twin.fit(*train, verbose=0)
        for _ in range(_REPEATS.value):
            epochs.append(_seconds(lambda: twin.fit(*train, verbose=0)))
        epoch = statistics.median(epochs)
        print(f"{name}: an epoch of fit takes {epoch:.2f} s", flush=True)
        for method, call in calls(model, train, test, run).items():
            if _METHODS.value and method not in _METHODS.value:
                continue
            seconds = []
            for repeat in range(_REPEATS.value):
                directory = str(pathlib.Path(folder, f"{method} {repeat}"))
                seconds.append(_seconds(lambda c=call, d=directory: c(d)))
            median = statistics.median(seconds)
            share = f"{median / epoch:.1f}"
            print(f"| {name} | {method} | {median:.2f} s | {share} |")


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main(_) -> None:
    for name in _MODELS.value:
        measure(name)


if __name__ == "__main__":
    app.run(main)
