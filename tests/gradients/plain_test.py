"""Plain gradients, which captured ones are held against."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_tracin.gradients.plain import PlainGradient
from keras_tracin.losses.per_example import per_example_loss
from tests.gradients.oracle import sequential

DATA = np.ones((3, 4, 2), "float32"), np.ones((3, 1), "float32")
SPEC = tuple(
    tf.TensorSpec([None, *part.shape[1:]], part.dtype) for part in DATA
)


@pytest.fixture(scope="module")
def model():
    model = sequential((4, 2), keras.layers.GRU(2), keras.layers.Dense(1))
    model.compile(loss="mse")
    return model


def gradient(model, spec):
    loss, variables = per_example_loss(model), model.trainable_variables
    return PlainGradient(model, loss, variables, spec)(DATA, [1.0, 0.0, 2.0])


def test_a_trace_makes_no_difference(model):
    traced, eager = gradient(model, SPEC), gradient(model, None)
    for one, other in zip(traced, eager, strict=True):
        np.testing.assert_allclose(one, other, 1e-5, 1e-6)
