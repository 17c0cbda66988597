"""The rules of depthwise and separable convolutions."""

import pytest
from keras import layers

from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    functional,
    sequential,
)


def conv(shape, layer_class, *args, **kwargs):
    return lambda: sequential(shape, layer_class(*args, **kwargs))


def mobile_block():
    return sequential(
        (5, 5, 2),
        layers.Conv2D(4, 1, activation="relu"),
        layers.DepthwiseConv2D(3, padding="same", activation="relu6"),
        layers.Conv2D(2, 1),
    )


def used_twice():
    shared = layers.SeparableConv2D(2, 3, padding="same", activation="tanh")
    return functional((4, 4, 2), lambda x: shared(shared(x)))


D1, D2 = layers.DepthwiseConv1D, layers.DepthwiseConv2D
S1, S2 = layers.SeparableConv1D, layers.SeparableConv2D
CASES = {
    "1-D": Case(conv((6, 3), D1, 3)),
    "1-D, same, strided": Case(conv((6, 3), D1, 3, strides=2, padding="same")),
    "1-D, dilated": Case(conv((7, 2), D1, 3, dilation_rate=2)),
    "1-D, multiplied": Case(conv((6, 2), D1, 2, depth_multiplier=3)),
    "2-D": Case(conv((5, 4, 3), D2, (3, 2))),
    "2-D, same": Case(conv((5, 4, 2), D2, 3, padding="same")),
    "2-D, strided": Case(conv((6, 5, 2), D2, 3, strides=2, padding="same")),
    "2-D, dilated": Case(
        conv((5, 6, 2), D2, 2, dilation_rate=2, padding="same")
    ),
    "2-D, strided and dilated": Case(
        conv((7, 6, 2), D2, 2, strides=2, dilation_rate=2, padding="same")
    ),
    "2-D, multiplied": Case(conv((4, 4, 2), D2, 3, depth_multiplier=2)),
    "2-D, no bias": Case(conv((4, 4, 2), D2, 3, use_bias=False)),
    "2-D, activation": Case(conv((4, 4, 2), D2, 3, activation="tanh")),
    "separable, 1-D": Case(conv((6, 3), S1, 2, 3)),
    "separable, 1-D, same, strided, multiplied": Case(
        conv((6, 2), S1, 3, 3, strides=2, padding="same", depth_multiplier=2)
    ),
    "separable, 2-D": Case(conv((4, 5, 2), S2, 3, (2, 3))),
    "separable, 2-D, same, strided": Case(
        conv((5, 4, 2), S2, 3, 3, strides=2, padding="same")
    ),
    "separable, 2-D, dilated": Case(conv((5, 5, 2), S2, 2, 2, dilation_rate=2)),
    "separable, 2-D, multiplied, no bias": Case(
        conv((4, 4, 2), S2, 3, 3, depth_multiplier=2, use_bias=False)
    ),
    "separable, 2-D, activation": Case(
        conv((4, 4, 2), S2, 3, 3, activation="tanh")
    ),
    "mobile block": Case(mobile_block),
    "called twice": Case(used_twice),
}
CASES = compact_in(
    CASES,
    "2-D, multiplied",
    "separable, 2-D, same, strided",
    "mobile block",
    "called twice",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
