"""Calls to time, and calls whose memory is measured in new processes."""

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf

import keras_tracin as kt
from benchmarks import _measure, _models

MEMORY_QUERIES = 100


@contextlib.contextmanager
def tracin(
    model: keras.Model, train: _models.Arrays, **options
) -> Iterator[kt.TracIn]:
    """TracIn over all layers, at one checkpoint with a learning rate of 1."""
    with tempfile.TemporaryDirectory() as directory:
        weights = pathlib.Path(directory, "model.weights.h5")
        model.save_weights(weights)
        run = kt.TrainingRun.from_weights([weights], learning_rates=1.0)
        yield kt.TracIn(model, train, run, **options)


def fit_epoch(
    model: keras.Model, train: _models.Arrays, batch_size: int
) -> Callable[[], object]:
    """One epoch of `model.fit`, which changes the weights."""
    x, y = train
    return lambda: model.fit(x, y, batch_size=batch_size, verbose=0)


def jacobian(
    model: keras.Model, train: _models.Arrays, num_examples: int
) -> Callable[[], object]:
    """Per-example gradients of a slice, by `tape.jacobian`."""
    x, y = (tf.constant(values[:num_examples]) for values in train)

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                y, model(x, training=False)
            )
        return tape.jacobian(losses, model.trainable_weights)

    return gradients


@dataclasses.dataclass(frozen=True)
class Memory:
    """Resident memory of one case in bytes, without the input arrays.

    Attributes:
        peak: Peak over the whole process.
        before: Memory after creating model and input, before any work.
    """

    peak: int
    before: int


def memory(case: str, name: str, num_train: int) -> Memory:
    """Runs a case in this new process, and measures its memory."""
    workload = _models.WORKLOADS[name]
    model = workload.compiled()
    num_queries = MEMORY_QUERIES if case == "top_k" else workload.num_queries
    train = _models.random_examples(workload, num_train, seed=0)
    test = _models.random_examples(workload, num_queries, seed=1)
    inputs = sum(array.nbytes for array in (*train, *test))
    before = _measure.resident_bytes() - inputs
    if case == "fit":
        fit_epoch(model, train, batch_size=32)()
    else:
        with tracin(model, train) as method:
            _score(method, case, test)
    return Memory(_measure.resident_bytes(peak=True) - inputs, before)


def representer_memory(num_train: int, num_queries: int) -> Memory:
    """Measures memory of `top_k` of representer points, in a new process."""
    workload = _models.WORKLOADS["cnn"]
    model = workload.compiled()
    train = _models.random_examples(workload, num_train, seed=0)
    test = _models.random_examples(workload, num_queries, seed=1)
    inputs = sum(array.nbytes for array in (*train, *test))
    before = _measure.resident_bytes() - inputs
    points = kt.RepresenterPoints(model, train, l2=1e-3, verbose=0)
    points.top_k(test, k=10, verbose=0)
    return Memory(_measure.resident_bytes(peak=True) - inputs, before)


def index_memory(num_train: int, dim: int) -> Memory:
    """Measures the memory of building an index, in a new process."""
    workload = _models.WORKLOADS["cnn"]
    model = workload.compiled()
    train = _models.random_examples(workload, num_train, seed=0)
    inputs = sum(array.nbytes for array in train)
    before = _measure.resident_bytes() - inputs
    with (
        tracin(model, train) as method,
        tempfile.TemporaryDirectory() as directory,
    ):
        projection = kt.TensorSketch(dim)
        kt.InfluenceIndex.build(method, directory, projection=projection)
    return Memory(_measure.resident_bytes(peak=True) - inputs, before)


def _score(method: kt.TracIn, case: str, test: _models.Arrays) -> None:
    if case == "influence":
        method.influence(test, verbose=0)
    elif case == "self_influence":
        method.self_influence(verbose=0)
    elif case == "top_k":
        method.top_k(test, k=10, verbose=0)
    else:
        raise ValueError(
            "Expected fit, influence, self_influence or top_k. "
            f"Received: case={case!r}"
        )
