"""Measures the cost of safeguards: checks, recording, copies of weights.

    python -m benchmarks.safeguards --parts=looks,recording,weights

*looks*: for each network, the share of a first call over `--num_train` examples
that goes into comparing a few gradients with plain TensorFlow (including
traces) and into computing several examples of the pass again, alone.

*recording*: an epoch of `fit` of the network 784-128-10, in batches of 32, with
`TracInCheckpoint` and without, in turns.

*weights*: estimated and measured memory for a network with 576 MB of weights
    under
a limit of 100 MB, each in a new process.
"""

import contextlib
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator

import keras
import numpy as np
from absl import app, flags

import keras_tracin as kt
from benchmarks import _cases, _measure, _models
from keras_tracin.engine.first_look import FirstLook
from keras_tracin.engine.spot_checks import SpotChecks

_PARTS = flags.DEFINE_list(
    "parts", ["looks", "recording", "weights"], "What to measure."
)
_MODELS = flags.DEFINE_list(
    "models", ["cnn", "resnet20", "transformer"], "Networks to look at."
)
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 10_000, "Number of training examples.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 7, "Epochs of which the median is taken.", lower_bound=1
)

WIDTH, WEIGHTS_LIMIT = 12_000, 100 * 2**20
MB = 1e6


@contextlib.contextmanager
def timed(owner: type, name: str) -> Iterator[list[float]]:
    """For a `with` block, records the seconds of calls of a method."""
    seconds: list[float] = []
    original = getattr(owner, name)

    def method(*args, **kwargs):
        started = time.perf_counter()
        try:
            return original(*args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - started)

    setattr(owner, name, method)
    try:
        yield seconds
    finally:
        setattr(owner, name, original)


def looks(name: str, kind: str) -> str:
    """A row: seconds of a first call, and the share of the checks."""
    workload = _models.WORKLOADS[name]
    train = _models.random_examples(workload, _NUM_TRAIN.value, seed=0)
    test = _models.random_examples(workload, workload.num_queries, seed=1)
    model = workload.compiled()
    with (
        timed(FirstLook, "complaint") as first,
        timed(SpotChecks, "look") as spots,
        _cases.tracin(model, train) as tracin,
    ):
        calls: dict[str, Callable[[], object]] = {
            "self-influence": lambda: tracin.self_influence(verbose=0),
            "top 10": lambda: tracin.top_k(test, 10, verbose=0),
        }
        started = time.perf_counter()
        calls[kind]()
        whole = time.perf_counter() - started
    shares = [sum(first) / whole, sum(spots) / whole]
    return (
        f"| {name}, {kind} | {whole:.1f} | {sum(first):.2f} | "
        f"{shares[0]:.1%} | {shares[1]:.1%} |"
    )


def recording() -> None:
    """Prints the ratio of an epoch with the callback to one without."""
    rng = np.random.default_rng(0)
    x = rng.random((10_000, 784), dtype=np.float32)
    y = rng.integers(10, size=10_000)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(128, "relu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.01), loss)
    with tempfile.TemporaryDirectory() as directory:
        callback = kt.TracInCheckpoint(pathlib.Path(directory, "run"))

        def fit(callbacks):
            return lambda: model.fit(x, y, verbose=0, callbacks=callbacks)

        # What is recorded goes on in the run from the state that it was left
        # in, so a callback's own epochs are all that it sees.
        seconds: dict[str, list[float]] = {"plain": [], "recorded": []}
        weights = model.get_weights()
        fit([callback])()
        after = model.get_weights()
        fit([])()
        for _ in range(_REPEATS.value):
            for key, callbacks in (("plain", []), ("recorded", [callback])):
                model.set_weights(after if key == "recorded" else weights)
                started = time.perf_counter()
                fit(callbacks)()
                seconds[key].append(time.perf_counter() - started)
                if key == "recorded":
                    after = model.get_weights()
    plain, recorded = map(statistics.median, seconds.values())
    print(
        f"\nRecording: {recorded / plain:.3f} of an epoch "
        f"({recorded:.3f} s, {plain:.3f} s without)."
    )


def weights_of(run: str, kind: str, aware: bool) -> tuple[int, int]:
    """Estimated and measured bytes."""
    model = _large()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, WIDTH)).astype("float32")
    y = rng.integers(0, 2, 64)
    before = _measure.resident_bytes()
    _measure.reset_peak()
    tracin = kt.TracIn(
        model, (x, y), run, memory_limit=WEIGHTS_LIMIT, optimizer_aware=aware
    )
    queries = (x[:2] + 1, y[:2])
    if kind == "top 3":
        tracin.top_k(queries, 3, verbose=0)
    else:
        tracin.self_influence(verbose=0)
    taken = _measure.resident_bytes(peak=True) - before
    return tracin.plan(queries if kind == "top 3" else None).memory, taken


def record_large(run: str) -> None:
    """Records one epoch of the large network."""
    x = np.zeros((8, WIDTH), np.float32)
    callbacks = [kt.TracInCheckpoint(run)]
    _large().fit(x, np.zeros(8, int), verbose=0, callbacks=callbacks)


def _large() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((WIDTH,)),
            keras.layers.Dense(WIDTH),
            keras.layers.Dense(2),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    return model


def main(_):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "looks" in _PARTS.value:
        print("| | first call, s | look, s | look | spot checks |")
        print("|---|---:|---:|---:|---:|")
        for name in _MODELS.value:
            for kind in ("self-influence", "top 10"):
                print(looks(name, kind), flush=True)
    if "recording" in _PARTS.value:
        recording()
    if "weights" in _PARTS.value:
        print("\n| 576 MB of weights | announced, MB | taken, MB | ratio |")
        print("|---|---:|---:|---:|")
        with tempfile.TemporaryDirectory() as directory:
            _measure.in_new_process(record_large, directory)
            for aware in (False, True):
                for kind in ("self-influence", "top 3"):
                    said, taken = _measure.in_new_process(
                        weights_of, directory, kind, aware
                    )
                    name = kind + ", optimizer-aware" * aware
                    print(
                        f"| {name} | {said / MB:,.0f} | {taken / MB:,.0f} | "
                        f"{said / taken:.2f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    app.run(main)
