"""Times of scores as sizes grow; see `scale.py`."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf
from scipy.optimize import nnls

import keras_tracin as kt
from benchmarks import _cases, _measure, _models
from keras_tracin.engine.blocks import blocks
from keras_tracin.engine.visits import Visit


@dataclasses.dataclass(frozen=True)
class Line:
    """T = c0 + c1·N + c2·M + c3·N·M, in seconds.

    Attributes:
        constants: c0 to c3, not negative.
        r_squared: share of the times' variance that the line explains.
    """

    constants: np.ndarray
    r_squared: float

    @classmethod
    def through(cls, sizes: np.ndarray, seconds: np.ndarray) -> "Line":
        """The line with the least relative error.

        Args:
            sizes: N and M of each measurement, `[k, 2]`.
            seconds: seconds of each measurement, `[k]`.
        """
        terms = _terms(sizes)
        constants, _ = nnls(terms / seconds[:, None], np.ones(len(seconds)))
        left = seconds - terms @ constants
        spread = seconds - seconds.mean()
        return cls(constants, float(1 - left @ left / (spread @ spread)))

    def at(self, sizes: np.ndarray) -> np.ndarray:
        """Times of the line at sizes `[k, 2]`."""
        return _terms(sizes) @ self.constants


def _terms(sizes: np.ndarray) -> np.ndarray:
    n, m = np.asarray(sizes, float).T
    return np.stack([np.ones_like(n), n, m, n * m], axis=1)


def line(name: str, sizes: np.ndarray, repeats: int) -> tuple[np.ndarray, Line]:
    """Measures seconds of scores for N × M `sizes [k, 2]`; fits the line."""
    workload = _models.WORKLOADS[name]
    model = workload.compiled()
    largest = int(sizes[:, 0].max()), int(sizes[:, 1].max())
    x, y = _models.random_examples(workload, largest[0], seed=0)
    queries = _models.random_examples(workload, largest[1], seed=1)
    calls = {}
    with contextlib.ExitStack() as open_runs:
        for count in sorted(set(sizes[:, 0])):
            method = open_runs.enter_context(
                _cases.tracin(model, (x[:count], y[:count]))
            )
            for m in sorted(set(sizes[:, 1])):
                calls[count, m] = _influence(method, queries, m)
        seconds = _measure.medians(calls, repeats)
    times = np.array([seconds[n, m] for n, m in sizes])
    return times, Line.through(sizes, times)


def _influence(
    method: kt.TracIn, queries: _models.Arrays, count: int
) -> Callable[[], object]:
    some = tuple(part[:count] for part in queries)
    return lambda: method.influence(some, verbose=0)


@contextlib.contextmanager
def _with_checkpoints(
    model: keras.Model, train: _models.Arrays, count: int
) -> Iterator[kt.TracIn]:
    """TracIn over `count` checkpoints, all with the same weights."""
    with tempfile.TemporaryDirectory() as directory:
        files = []
        for at in range(count):
            files.append(pathlib.Path(directory, f"{at}.weights.h5"))
            model.save_weights(files[-1])
        run = kt.TrainingRun.from_weights(files, learning_rates=1.0)
        yield kt.TracIn(model, train, run)


def checkpoints(name: str, repeats: int) -> dict[int, float]:
    """Seconds of 4,000 × 100 scores by the number of checkpoints."""
    workload = _models.WORKLOADS[name]
    model = workload.compiled()
    train = _models.random_examples(workload, 4_000, seed=0)
    queries = _models.random_examples(workload, 100, seed=1)
    with contextlib.ExitStack() as open_runs:
        calls = {
            count: _influence(
                open_runs.enter_context(_with_checkpoints(model, train, count)),
                queries,
                100,
            )
            for count in (1, 2, 5, 10)
        }
        return _measure.medians(calls, repeats)


def mlp_of(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(width, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def cnn_of(width: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(width, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(2 * width, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(4 * width, activation="relu"),
            keras.layers.Dense(10),
        ]
    )


def transformer_on(length: int) -> keras.Model:
    tokens = keras.Input((length,), dtype="int32")
    x = keras.layers.Embedding(10_000, 128)(tokens)
    for _ in range(2):
        attended = keras.layers.MultiHeadAttention(4, 32)(x, x)
        x = keras.layers.LayerNormalization()(x + attended)
        wide = keras.layers.Dense(512, activation="relu")(x)
        wide = keras.layers.Dense(128)(wide)
        x = keras.layers.LayerNormalization()(x + wide)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, keras.layers.Dense(10)(x))


def grown(
    build: Callable[[int], keras.Model], size: int, count: int, repeats: int
) -> str:
    """A row: number of parameters, seconds of scores and of a `fit` epoch."""
    model = build(size)
    workload = _models.Workload(
        lambda: model,
        tuple(model.input_shape[1:]),
        num_queries=100,
        jacobian_examples=0,
        reads_tokens="int" in str(model.inputs[0].dtype),
    )
    model = workload.compiled()
    train = _models.random_examples(workload, count, seed=0)
    queries = _models.random_examples(workload, 100, seed=1)
    with _cases.tracin(model, train) as method:
        calls = {
            "fit": _cases.fit_epoch(model, train, 32),
            "scores": _influence(method, queries, 100),
        }
        seconds = _measure.medians(calls, repeats)
    ratio = seconds["scores"] / seconds["fit"]
    return (
        f"{model.count_params():,} | {seconds['fit']:.2f} | "
        f"{seconds['scores']:.2f} | {ratio:.2f}"
    )


def shares(name: str, repeats: int) -> dict[str, float]:
    """Shares of a batch's time: forward, backward, products, reading."""
    workload = _models.WORKLOADS[name]
    model = workload.compiled()
    train = _models.random_examples(workload, 4_000, seed=0)
    queries = _models.random_examples(workload, 100, seed=1)
    with _cases.tracin(model, train) as method:
        engine = method.engine
        size = method.plan(queries).batch_size
        batches = [b.data for b in engine.train.batches(size)]
        steps = engine.train_steps
        block = next(blocks(engine, queries))
        factors, one = (
            block.factors(Visit(None, np.float32(1), np.int32(0))),
            np.float32(1),
        )
        forward = tf.function(lambda x: model(x, training=False))

        def each(step):
            return lambda: [step(data) for data in batches]

        seconds = _measure.medians(
            {
                "read": lambda: list(engine.train.batches(size)),
                "forward": each(lambda data: forward(data[0])),
                "captured": each(lambda data: steps.captured(data)),
                "products": each(
                    lambda data: steps.products(data, factors, one)
                ),
            },
            repeats,
        )
    return {
        "reading": seconds["read"],
        "forward": seconds["forward"],
        "backward": seconds["captured"] - seconds["forward"],
        "products": seconds["products"] - seconds["captured"],
    }


def workers(name: str, repeats: int, count: int = 8_000) -> dict[int, float]:
    """Seconds of a call by one process on one core, and by two on two."""
    workload = _models.WORKLOADS[name]
    with tempfile.TemporaryDirectory() as directory:
        weights = pathlib.Path(directory, "model.weights.h5")
        workload.compiled().save_weights(weights)
        seconds_by_processes = {}
        for many in (1, 2):
            runs = []
            for run in range(repeats):
                parts = pathlib.Path(directory, f"{many}-{run}")
                runs.append(_shared_call(name, count, weights, parts, many))
            seconds_by_processes[many] = float(np.median(runs))
        return seconds_by_processes


def _shared_call(
    name: str,
    count: int,
    weights: pathlib.Path,
    parts: pathlib.Path,
    workers: int,
) -> float:
    cluster = {"worker": [f"127.0.0.1:{20_000 + i}" for i in range(workers)]}
    processes = []
    for index in range(workers):
        task = {"type": "worker", "index": index}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": task}),
        }
        arguments = [name, str(count), str(weights), str(parts), str(index)]
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks._worker", *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
    # Each prints its seconds, from when all are ready to when all is done.
    return max(float(p.communicate()[0].split()[-1]) for p in processes)
