"""Softmax regression on MNIST at the minimum of its objective.

Synopsis:

    train, test = examples(5_000, 50, folder)
    model = at_minimum(train)
    without = at_minimum(fewer, start=model, count=5_000)
"""

import keras
import numpy as np
from keras import layers, regularizers

import keras_tracin as kt
from benchmarks import _models

L2 = 0.01  # of the kernel and the bias alike


def examples(
    count: int, queries: int, data_dir: str | None
) -> tuple[_models.Arrays, _models.Arrays]:
    """Images as vectors `[n, 784]`, and their labels."""
    workload = _models.WORKLOADS["mlp"]
    train, test = _models.load_examples(workload, count, data_dir)
    return train, (test[0][:queries], test[1][:queries])


def _model() -> keras.Model:
    penalty = regularizers.L2(L2)
    model = keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(
                _models.NUM_CLASSES,
                kernel_regularizer=penalty,
                bias_regularizer=penalty,
                kernel_initializer="zeros",
            ),
        ]
    )
    model.compile(
        keras.optimizers.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def at_minimum(
    train: _models.Arrays,
    start: keras.Model | None = None,
    count: int | None = None,
) -> keras.Model:
    """A model that minimises the summed loss / `count` + L2 ‖W‖².

    It is the retuning of representer points, with a model of a single layer.

    Args:
        train: the examples.
        start: a model to begin from.
        count: divisor of the sum of losses; by default the number of examples.
    """
    share = len(train[0]) / (count or len(train[0]))
    start = start or _model()
    points = kt.RepresenterPoints(start, train, l2=L2 / share, verbose=0)
    model = _model()
    model.set_weights(
        [
            points.weights[:-1].astype(np.float32),
            points.weights[-1].astype(np.float32),
        ]
    )
    return model
