"""The rules of convolutions and transposed convolutions."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tracin.gradients import factors as algebra
from keras_tracin.gradients.capture import capture
from keras_tracin.gradients.rules import LayerUse, rule_for
from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    functional,
    sequential,
    uneven_loss,
)


def conv(shape, layer_class, *args, **kwargs):
    return lambda: sequential(shape, layer_class(*args, **kwargs))


def small_network():
    return sequential(
        (6, 6, 2),
        layers.Conv2D(3, 3, activation="relu", padding="same"),
        layers.MaxPooling2D(),
        layers.Conv2D(4, 2, strides=2, use_bias=False),
        layers.Flatten(),
        layers.Dense(2),
    )


def generator():
    return sequential(
        (3,),
        layers.Dense(8, activation="tanh"),
        layers.Reshape((2, 2, 2)),
        layers.Conv2DTranspose(3, 3, strides=2, activation="relu"),
        layers.Conv2DTranspose(1, 2, padding="same", use_bias=False),
    )


def used_twice():
    shared = layers.Conv2D(2, 3, padding="same", activation="tanh")
    return functional((4, 4, 2), lambda x: shared(shared(x)))


CASES = {
    "1-D, valid": Case(conv((7, 2), layers.Conv1D, 3, 3)),
    "1-D, same": Case(conv((7, 2), layers.Conv1D, 3, 3, padding="same")),
    "1-D, same, even kernel": Case(
        conv((7, 2), layers.Conv1D, 3, 4, padding="same")
    ),
    "1-D, causal": Case(conv((7, 2), layers.Conv1D, 3, 3, padding="causal")),
    "1-D, causal, dilated": Case(
        conv((7, 2), layers.Conv1D, 3, 2, padding="causal", dilation_rate=3)
    ),
    "1-D, strided": Case(conv((8, 2), layers.Conv1D, 3, 3, strides=2)),
    "1-D, same, strided": Case(
        conv((8, 2), layers.Conv1D, 3, 3, strides=2, padding="same")
    ),
    "1-D, dilated": Case(conv((8, 2), layers.Conv1D, 3, 3, dilation_rate=2)),
    "1-D, stride beyond the kernel": Case(
        conv((9, 2), layers.Conv1D, 3, 2, strides=4, padding="same")
    ),
    "1-D, kernel of one": Case(conv((5, 3), layers.Conv1D, 2, 1)),
    "2-D, valid": Case(conv((5, 6, 2), layers.Conv2D, 3, (3, 2))),
    "2-D, strided": Case(
        conv((6, 7, 2), layers.Conv2D, 3, 3, strides=(2, 3), padding="same")
    ),
    "2-D, dilated": Case(
        conv((6, 7, 2), layers.Conv2D, 3, 2, dilation_rate=(2, 3))
    ),
    "2-D, same, dilated": Case(
        conv((5, 5, 2), layers.Conv2D, 2, 3, dilation_rate=2, padding="same")
    ),
    "2-D, one output position": Case(conv((3, 3, 2), layers.Conv2D, 4, 3)),
    "2-D, few positions, many filters": Case(
        conv((3, 3, 8), layers.Conv2D, 20, 2)
    ),
    "2-D, activation": Case(
        conv((4, 4, 2), layers.Conv2D, 3, 2, activation="tanh")
    ),
    "2-D, groups": Case(conv((4, 4, 4), layers.Conv2D, 6, 2, groups=2)),
    "2-D, groups, no bias": Case(
        conv((4, 4, 4), layers.Conv2D, 4, 2, groups=4, use_bias=False)
    ),
    "3-D, same, strided": Case(
        conv(
            (4, 3, 5, 2),
            layers.Conv3D,
            2,
            (2, 3, 2),
            strides=2,
            padding="same",
        )
    ),
    "3-D, dilated": Case(
        conv((5, 3, 5, 1), layers.Conv3D, 2, 2, dilation_rate=(2, 1, 3))
    ),
    "2-D, few channels, many positions": Case(
        conv((6, 7, 3), layers.Conv2D, 2, 3, padding="same", use_bias=False)
    ),
    "2-D, many positions, even kernel": Case(
        conv((7, 6, 5), layers.Conv2D, 2, (4, 2), padding="same")
    ),
    "2-D, many positions, dilated": Case(
        conv((9, 8, 5), layers.Conv2D, 2, 3, dilation_rate=(2, 1))
    ),
    "2-D, many positions, strided along one axis": Case(
        conv((7, 9, 5), layers.Conv2D, 2, (3, 2), strides=(1, 2))
    ),
    "1-D, many positions, causal": Case(
        conv((30, 5), layers.Conv1D, 2, 3, padding="causal", dilation_rate=2)
    ),
    "3-D, many positions": Case(
        conv((4, 4, 3, 5), layers.Conv3D, 2, (2, 2, 1), padding="same")
    ),
    "a small network": Case(small_network),
    "called twice": Case(used_twice),
}
CASES = compact_in(
    CASES,
    "1-D, same",
    "2-D, few positions, many filters",
    "2-D, groups",
    "2-D, few channels, many positions",
    "2-D, many positions, dilated",
    "3-D, same, strided",
    "a small network",
    "called twice",
)


T1, T2, T3 = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
TRANSPOSED = {
    "1-D, valid": Case(conv((4, 2), T1, 3, 3)),
    "1-D, same": Case(conv((4, 2), T1, 3, 3, padding="same")),
    "1-D, strided": Case(conv((4, 2), T1, 3, 3, strides=2)),
    "1-D, same, strided": Case(
        conv((4, 2), T1, 3, 4, strides=3, padding="same")
    ),
    "1-D, stride beyond the kernel": Case(conv((3, 2), T1, 3, 2, strides=4)),
    "1-D, kernel of one": Case(conv((4, 3), T1, 2, 1)),
    "2-D, valid": Case(conv((3, 4, 2), T2, 3, (3, 2))),
    "2-D, strided": Case(conv((3, 2, 2), T2, 2, 3, strides=(2, 3))),
    "2-D, same, strided": Case(
        conv((3, 4, 2), T2, 2, 3, strides=2, padding="same")
    ),
    "2-D, output padding": Case(
        conv((3, 2, 2), T2, 2, 3, strides=2, output_padding=1)
    ),
    "2-D, same, output padding": Case(
        conv(
            (3, 2, 2),
            T2,
            2,
            (3, 2),
            strides=(2, 3),
            padding="same",
            output_padding=(0, 2),
        )
    ),
    "2-D, no bias": Case(conv((3, 3, 2), T2, 2, 2, use_bias=False)),
    "2-D, activation": Case(conv((3, 3, 2), T2, 2, 2, activation="tanh")),
    "2-D, few positions, many filters": Case(conv((2, 2, 12), T2, 8, 3)),
    "3-D, same, strided": Case(
        conv((2, 3, 2, 2), T3, 2, (2, 3, 2), strides=2, padding="same")
    ),
    "a generator": Case(generator),
}
TRANSPOSED = compact_in(
    TRANSPOSED,
    "2-D, same, strided",
    "2-D, few positions, many filters",
    "a generator",
)


@pytest.mark.parametrize("case", TRANSPOSED.values(), ids=TRANSPOSED)
def test_factors_of_transposed_convolutions_match_the_jacobian(case):
    check(case)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)


@pytest.mark.parametrize(
    ("layer_class", "shape", "size", "padding"),
    [
        (T1, (5, 2), 3, "valid"),
        (T2, (4, 5, 2), (3, 2), "same"),
        (T3, (3, 4, 3, 2), 2, "valid"),
    ],
)
def test_dilated_transposed_convolutions_match_xla(
    layer_class, shape, size, padding
):
    # Without XLA, TensorFlow cannot run these layers on a CPU.
    layer = layer_class(3, size, padding=padding, dilation_rate=2)
    layer.build((None, *shape))
    rng = np.random.default_rng(0)

    def normal(*sizes):
        return tf.constant(rng.normal(size=sizes).astype("float32"))

    x = normal(3, *shape)
    delta = normal(*layer.compute_output_shape(x.shape))

    @tf.function(jit_compile=True, autograph=False)
    def gradient(inputs, grads):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(grads * layer(inputs))
        return tape.gradient(value, layer.kernel.value)

    use = LayerUse((x,), {}, (delta,), ())
    (_, factors), _ = rule_for(layer).factors(layer, use)
    (found,) = algebra.materialize(factors).parts
    for i in range(len(x)):
        expected = gradient(x[i : i + 1], delta[i : i + 1])
        np.testing.assert_allclose(
            found[i], np.ravel(expected), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(layers.Conv2D, 2, (2, 3)),
        functools.partial(layers.Conv2D, 2, (2, 3), groups=2),
        functools.partial(layers.Conv2DTranspose, 2, (2, 3)),
        functools.partial(layers.DepthwiseConv2D, (2, 3)),
        functools.partial(layers.SeparableConv2D, 2, (2, 3)),
    ],
    ids=["plain", "groups", "transposed", "depthwise", "separable"],
)
def test_channels_first_gives_the_factors_of_channels_last(make):
    # TensorFlow cannot run most of these layers this way round on a CPU.
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 5, 6, 4)).astype("float32")
    built = make()
    delta = rng.normal(size=built.compute_output_shape(x.shape))
    delta = delta.astype("float32")
    built.build(x.shape)
    found = []
    for data_format in ("channels_last", "channels_first"):
        layer = make(data_format=data_format)
        first = data_format == "channels_first"
        inputs, grads = (
            tf.constant(np.moveaxis(a, -1, 1) if first else a)
            for a in (x, delta)
        )
        layer.build(inputs.shape)
        layer.set_weights(built.get_weights())
        use = LayerUse((inputs,), {}, (grads,), ())
        found.append([f for _, f in rule_for(layer).factors(layer, use)])
    last, first = (tf.nest.flatten(factors) for factors in found)
    for a, b in zip(last, first, strict=True):
        np.testing.assert_array_equal(a, b)


def test_open_spatial_size_is_refused_with_its_remedy():
    model = sequential(
        (None, None, 1), layers.Conv2D(2, 3), layers.GlobalMaxPooling2D()
    )

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, None, None, 1]),
            tf.TensorSpec([None]),
        ]
    )
    def step(x, y):
        return capture(model, uneven_loss, (x, y, None)).losses

    with pytest.raises(ValueError, match=r"fixed spatial size.*ensure_shape"):
        step(keras.ops.ones((2, 5, 5, 1)), keras.ops.ones(2))
