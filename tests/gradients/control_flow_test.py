"""Layers with loops, branches and calls of functions inside."""

import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients import factors as algebra
from keras_tracin.models.loops import unfinished_loops
from tests.error_rows import row
from tests.gradients.oracle import precision, randomize, uneven_loss
from tests.zoo.one_by_one import gradients_one_by_one


class Stepping(keras.Layer):
    """A user's layer that applies one kernel over and over."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(3, 3), name="kernel")

    def step(self, state, inputs):
        return ops.tanh(ops.matmul(state, self.kernel) + inputs)


class Scans(Stepping):
    def call(self, inputs):
        def step(state, x):
            state = self.step(state, x)
            return state, state

        start = ops.zeros_like(inputs[:, 0])
        return ops.scan(step, start, ops.transpose(inputs, (1, 0, 2)))[0]


class Loops(Stepping):
    def call(self, inputs):
        def step(k, state):
            return self.step(state, inputs[:, 0])

        return ops.fori_loop(0, 2, step, inputs[:, 0])


class Branches(Stepping):
    def call(self, inputs):
        chosen = ops.cast(self.kernel[0, 0] < 100.0, "bool")
        return ops.cond(
            chosen,
            lambda: self.step(inputs[:, 0], inputs[:, 1]),
            lambda: inputs[:, 0],
        )


class Compiled(Stepping):
    @tf.function(jit_compile=True)
    def call(self, inputs):
        return self.step(inputs[:, 0], inputs[:, 1])


class Unregistered(Stepping):
    """Has an operation that TensorFlow vectorizes by a loop."""

    def call(self, inputs):
        product = ops.matmul(inputs, self.kernel)
        return tf.linalg.svd(product, compute_uv=False)


CASES = {
    "keras.ops.scan": (Scans, "Layer 'layer' .* slow"),
    "keras.ops.fori_loop": (Loops, None),
    "keras.ops.cond": (Branches, "Layer 'layer' .* slow"),
    "tf.function compiled by XLA": (Compiled, None),
    "an operation without a vectorized form": (Unregistered, "In layer .* Svd"),
}


def built(layer_class):
    model = keras.Sequential(
        [
            keras.Input((2, 3)),
            layers.Dense(3, activation="tanh"),
            layer_class(name="layer"),
            layers.Dense(2),
        ]
    )
    randomize(model)
    return model


def batch(dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 2, 3)).astype(dtype)
    return x, rng.normal(size=4).astype(dtype)


def products(model, data) -> np.ndarray:
    functions = GradientFunctions(model, uneven_loss, like=data)
    factors = functions.captured(data).factors
    return sum(algebra.inner(f, f).numpy() for f in factors)


@pytest.mark.parametrize(("layer_class", "words"), CASES.values(), ids=CASES)
def test_control_flow_in_a_layer_is_exact_and_quiet(layer_class, words, capfd):
    with precision("float64"), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, data = built(layer_class), batch("float64")
        capfd.readouterr()
        received = products(model, data)
        said = capfd.readouterr()
        rows = gradients_one_by_one(model, *data, uneven_loss)
    np.testing.assert_allclose(received, rows @ rows.T, rtol=1e-9)
    assert "pfor" not in said.out + said.err
    assert "while_loop" not in said.out + said.err
    messages = [str(warning.message) for warning in caught]
    if words is None:
        assert not messages
    else:
        (message,) = messages
        assert re.search(words, message)


def test_functions_that_run_eagerly_are_traced_all_the_same():
    model, data = built(Loops), batch("float32")
    expected = products(model, data)
    tf.config.run_functions_eagerly(True)
    try:
        received = products(model, data)
        assert tf.config.functions_run_eagerly()
    finally:
        tf.config.run_functions_eagerly(False)
    np.testing.assert_allclose(received, expected, rtol=1e-6)


class OnTheHost(Stepping):
    def call(self, inputs):
        signs = tf.numpy_function(np.sign, [inputs[:, 0]], inputs.dtype)
        signs = tf.ensure_shape(signs, [inputs.shape[0], 3])
        return self.step(inputs[:, 0], signs)


def test_operation_that_xla_lacks_is_named():
    model, data = built(OnTheHost), batch("float32")
    functions = GradientFunctions(
        model, uneven_loss, like=data, jit_compile=True
    )
    with pytest.raises(
        ValueError, match=row("xla", "PyFunc...`jit_compile=False`")
    ):
        functions.squared_norms(data, tf.constant(1.0))


def test_a_loop_that_fails_half_way_keeps_no_strategy_out():
    def failing(element):
        raise ValueError("It fails.")

    @tf.function(autograph=False)
    def traced(elements):
        with unfinished_loops(), pytest.raises(ValueError, match="It fails"):
            tf.map_fn(failing, elements)
        return elements

    traced(tf.ones([3]))
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        pass
