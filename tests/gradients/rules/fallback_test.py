"""Layers without a rule of their own, and variables that layers share."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.gradients.capture import capture
from tests.error_rows import row
from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    functional,
    sequential,
    uneven_loss,
)


class Scaled(keras.Layer):
    """A user's layer with a weight."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")

    def call(self, inputs):
        return keras.ops.tanh(inputs * self.scale)


class Gated(keras.Layer):
    """A user's layer that holds layers and owns a weight as well."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3, activation="tanh")
        self.blocks = [Scaled(), layers.Dense(3)]

    def build(self, input_shape):
        self.gate = self.add_weight(shape=(3,), name="gate")
        self.inner.build(input_shape)
        for block in self.blocks:
            block.build((*input_shape[:-1], 3))

    def call(self, inputs):
        hidden = self.inner(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden * keras.ops.sigmoid(self.gate)


class Rematerializing(keras.Layer):
    """A user's layer that computes a layer in it anew on the way back."""

    def __init__(self):
        super().__init__()
        self.inner = layers.Dense(3, activation="tanh")

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.scale = self.add_weight(shape=(3,), name="scale")

    def call(self, inputs):
        return keras.remat(self.inner)(inputs) * self.scale


class Mixer(keras.Layer):
    """A user's layer with two inputs and a structure of outputs."""

    def build(self, left_shape, right_shape):
        self.mix = self.add_weight(shape=(left_shape[-1],), name="mix")

    def call(self, left, right):
        return {"sum": left + self.mix * right, "product": self.mix * left}


class Scaling(layers.Wrapper):
    """A user's wrapper with a weight."""

    def build(self, input_shape):
        super().build(input_shape)
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, inputs):
        return self.layer(inputs) * self.scale


class TwoWeights(keras.Model):
    """A model that owns weights beside its layers."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(3, activation="tanh")
        self.scale = self.add_weight(shape=(3,), name="scale")
        self.shift = self.add_weight(shape=(), name="shift")

    def call(self, inputs):
        return self.hidden(inputs) * self.scale + self.shift


class Projection(keras.Layer):
    """A matrix product with another layer's variable, transposed or not."""

    def __init__(self, variable, transpose=False):
        super().__init__()
        self.kernel = variable
        self.transpose = transpose

    def call(self, inputs):
        kernel = keras.ops.convert_to_tensor(self.kernel)
        if self.transpose:
            kernel = keras.ops.transpose(kernel)
        return keras.ops.matmul(inputs, kernel)


class DenseLike(layers.Dense):
    """A Dense layer that uses the kernel of another."""

    def __init__(self, other):
        super().__init__(other.units, activation="tanh")
        self.other = [other]

    def build(self, input_shape):
        self._kernel = self.other[0].kernel
        self.bias = self.add_weight(shape=(self.units,), name="bias")


def one_variable_in_two_layers():
    first = Projection(keras.Variable(keras.ops.ones((3, 3))))
    second = Projection(first.kernel, transpose=True)
    return functional((3,), lambda x: second(keras.ops.tanh(first(x))))


def one_kernel_in_two_dense_layers():
    first = layers.Dense(3, activation="tanh")
    return functional((3,), lambda x: DenseLike(first)(first(x)))


def kernel_used_by_another_kind_of_layer():
    dense = layers.Dense(4, activation="tanh")

    def call(x):
        hidden = dense(x)
        return Projection(dense.kernel, transpose=True)(hidden)

    return functional((3,), call)


def embedding_used_by_another_kind_of_layer():
    table = layers.Embedding(6, 3)

    def call(ids):
        hidden = table(ids)
        return Projection(table.embeddings, transpose=True)(hidden)

    return functional((4,), call, dtype="int32")


def masked_steps():
    return sequential(
        (5,),
        layers.Embedding(6, 3, mask_zero=True),
        layers.TimeDistributed(layers.Dense(2)),
        dtype="int32",
    )


def two_inputs():
    left, right = keras.Input((3,)), keras.Input((3,))
    return keras.Model([left, right], Mixer()(left, right))


def called_twice():
    shared = Scaled()
    return functional((3,), lambda x: layers.Dense(3)(shared(shared(x))))


def nested_in_a_frozen_layer():
    model = sequential((2,), Gated(), layers.Dense(2, name="head"))
    model.layers[0].trainable = False
    return model


def around(shape, make_layer):
    """A model of the layer and one before it."""
    return lambda: sequential(
        shape, layers.Dense(shape[-1], activation="tanh"), make_layer()
    )


CASES = {
    "TimeDistributed": Case(
        around((3, 2), lambda: layers.TimeDistributed(layers.Dense(2)))
    ),
    "TimeDistributed, a convolution": Case(
        around(
            (2, 4, 4, 2),
            lambda: layers.TimeDistributed(
                layers.Conv2D(2, 3, activation="tanh")
            ),
        )
    ),
    "TimeDistributed twice": Case(
        around(
            (2, 3, 2),
            lambda: layers.TimeDistributed(
                layers.TimeDistributed(layers.Dense(2))
            ),
        )
    ),
    "TimeDistributed over padded ids": Case(masked_steps, tokens=6),
    "SpectralNormalization": Case(
        around((3,), lambda: layers.SpectralNormalization(layers.Dense(2)))
    ),
    "user's layer that rematerializes": Case(around((3,), Rematerializing)),
    "user's wrapper": Case(around((3,), lambda: Scaling(layers.Dense(2)))),
    "PReLU": Case(around((3, 2), layers.PReLU)),
    "user's layer": Case(around((3,), Scaled)),
    "user's layer that nests layers": Case(around((2,), Gated)),
    "user's layer with structured arguments": Case(two_inputs),
    "user's layer called twice": Case(called_twice),
    "user's layer, frozen with all in it": Case(nested_in_a_frozen_layer),
    "model that owns weights": Case(TwoWeights, shape=(2,)),
    "one variable in two layers": Case(one_variable_in_two_layers),
    "one kernel in two Dense layers": Case(one_kernel_in_two_dense_layers),
    "kernel used by another kind of layer": Case(
        kernel_used_by_another_kind_of_layer
    ),
    "embedding used by another kind of layer": Case(
        embedding_used_by_another_kind_of_layer, tokens=6
    ),
}
CASES = compact_in(
    CASES,
    "TimeDistributed",
    "PReLU",
    "user's layer called twice",
    "model that owns weights",
    "kernel used by another kind of layer",
    "embedding used by another kind of layer",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


def test_spectral_normalization_is_not_brought_up_to_date():
    model = sequential(
        (3,),
        layers.Dense(3),
        layers.SpectralNormalization(layers.Dense(2)),
    )
    batch = np.ones((4, 3), "float32"), np.ones(4, "float32")
    before = model.get_weights()
    functions = GradientFunctions(model, uneven_loss, like=batch)
    assert np.all(functions.squared_norms(batch, tf.constant(1.0)) > 0)
    for value, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, expected)


class HostSide(keras.Layer):
    """A layer that `tf.vectorized_map` cannot repeat."""

    def build(self, input_shape):
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, inputs):
        if inputs.shape[0] == 1:
            raise ValueError("one example is too few")
        return inputs * self.scale


def test_layer_that_cannot_be_repeated_is_refused_by_name():
    model = sequential((3,), HostSide(name="stubborn"), layers.Dense(2))

    @tf.function(
        input_signature=[tf.TensorSpec([None, 3]), tf.TensorSpec([None])]
    )
    def step(x, y):
        return capture(model, uneven_loss, (x, y, None)).losses

    with pytest.raises(
        ValueError,
        match=row("unsplittable-layer", "'stubborn' (HostSide)...layers="),
    ):
        step(tf.ones((4, 3)), tf.ones(4))


def test_a_layer_taken_one_by_one_needs_a_trace():
    model = sequential((3,), HostSide(name="stubborn"), layers.Dense(2))
    data = tf.ones((4, 3)), tf.ones(4), None
    tf.config.run_functions_eagerly(True)
    try:
        with pytest.raises(
            ValueError, match=row("eager-functions", "'stubborn' (HostSide)")
        ):
            tf.function(lambda: capture(model, uneven_loss, data).losses)()
    finally:
        tf.config.run_functions_eagerly(False)
