"""Networks for measurements of curvature, and comparisons of scores."""

import time
from collections.abc import Callable

import keras
import numpy as np
import scipy.stats
import sklearn.datasets

from benchmarks import _models
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.losses.per_example import per_example_loss

QUERIES = 50


def digits_network():
    """A network of 1,885 numbers, trained, with its data and queries."""
    x, y = sklearn.datasets.load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])
    test = tuple(part[:QUERIES] for part in test)
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(25, activation="tanh"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(*train, epochs=60, batch_size=32, verbose=0)
    return model, train, test


def mnist_network(num_train: int, num_queries: int, data_dir: str | None):
    """784-256-128-10, trained, with its data and queries."""
    workload = _models.WORKLOADS["mlp"]
    train, test = _models.load_examples(workload, num_train, data_dir)
    model = workload.compiled()
    model.compile(keras.optimizers.Adam(1e-3), model.loss)
    model.fit(*train, epochs=10, batch_size=32, verbose=0)
    return model, train, tuple(part[:num_queries] for part in test)


def gradients_of(model, data) -> np.ndarray:
    """The gradient of each example, `[n, p]`."""
    examples = open_examples(data)
    loss = per_example_loss(model)
    functions = GradientFunctions(model, loss, examples.first(2).data)
    (batch,) = examples.batches(len(data[0]))
    return functions.rows(batch.data, np.float32(1)).numpy()


def operator_of(kind, model, train):
    """A curvature of all of a model's weights."""
    variables = model.trainable_variables
    examples = open_examples(train)
    return kind(model, per_example_loss(model), examples, variables)


def fit_epoch(model, train) -> float:
    """Seconds of an epoch of `fit`, after a warm-up epoch."""
    twin = keras.models.clone_model(model)
    twin.compile("sgd", model.loss)
    twin.fit(*train, batch_size=32, verbose=0)
    return timed(lambda: twin.fit(*train, batch_size=32, verbose=0))[1]


def timed(call: Callable):
    """The result of a call, and its seconds."""
    start = time.perf_counter()
    return call(), time.perf_counter() - start


def spearman(a, b) -> float:
    """The median over queries of the rank correlation of two scores."""
    return _median(scipy.stats.spearmanr, a, b)


def pearson(a, b) -> float:
    """The median over queries of the correlation of two scores."""
    return _median(scipy.stats.pearsonr, a, b)


def _median(correlation, a, b) -> float:
    each = [correlation(*pair).statistic for pair in zip(a, b, strict=True)]
    return float(np.median(each))
