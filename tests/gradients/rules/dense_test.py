"""The rule of Dense layers, and how Dense layers combine in models."""

import keras
import pytest
from keras import layers

from tests.gradients.oracle import (
    Case,
    check,
    compact_in,
    functional,
    sequential,
)


def used_twice():
    shared = layers.Dense(4, activation="tanh")
    return functional((4,), lambda x: layers.Dense(2)(shared(shared(x))))


def used_twice_at_other_lengths():
    shared = layers.Dense(4, activation="tanh")

    def call(x):
        first = shared(x)
        pooled = shared(layers.GlobalAveragePooling1D()(first))
        return layers.Dense(2)(pooled), first

    return functional((3, 4), call)


def model_inside_a_model():
    inner = functional((4,), lambda x: layers.Dense(3, activation="relu")(x))
    return functional((4,), lambda x: layers.Dense(2)(inner(x) + 1.0))


def frozen_layer():
    frozen = layers.Dense(4, activation="tanh", name="frozen")
    model = sequential((3,), layers.Dense(4), frozen, layers.Dense(2))
    frozen.trainable = False
    return model


def without_kernel():
    layer = layers.Dense(4, activation="tanh")
    model = sequential((3,), layer, layers.Dense(2))
    layer.kernel.trainable = False
    return model


def two_outputs():
    def call(x):
        hidden = layers.Dense(4, activation="tanh")(x)
        return {"a": layers.Dense(2)(hidden), "b": layers.Dense(3)(hidden)}

    return functional((3,), call)


def two_inputs():
    inputs = [keras.Input((3,)), keras.Input((2,))]
    joined = layers.Concatenate()(inputs)
    return keras.Model(inputs, layers.Dense(2, activation="tanh")(joined))


def three_layers():
    return sequential(
        (3,),
        layers.Dense(4, activation="tanh", name="first"),
        keras.Sequential(
            [
                layers.Dense(4, activation="tanh", name="second"),
                layers.Dense(4, name="third"),
            ],
            name="block",
        ),
        layers.Dense(2, name="last"),
        name="net",
    )


class Subclassed(keras.Model):
    """A model whose layers are attributes."""

    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(4, activation="relu")
        self.heads = [layers.Dense(2), layers.Dense(3)]

    def call(self, inputs):
        hidden = self.hidden(inputs)
        return [head(hidden) for head in self.heads]


CASES = {
    "vectors": Case(lambda: sequential((3,), layers.Dense(4))),
    "sequences": Case(lambda: sequential((3, 4), layers.Dense(5))),
    "grids": Case(lambda: sequential((2, 2, 3), layers.Dense(4))),
    "few positions, wide": Case(lambda: sequential((2, 30), layers.Dense(40))),
    "many positions, narrow": Case(
        lambda: sequential((20, 3), layers.Dense(2))
    ),
    "length known only at run time": Case(
        lambda: sequential((None, 3), layers.Dense(4)), shape=(6, 3)
    ),
    "no bias": Case(lambda: sequential((3,), layers.Dense(4, use_bias=False))),
    "sequences without bias": Case(
        lambda: sequential((3, 4), layers.Dense(5, use_bias=False))
    ),
    "relu": Case(
        lambda: sequential(
            (8,), layers.Dense(9, activation="relu"), layers.Dense(2)
        )
    ),
    "tanh": Case(lambda: sequential((3,), layers.Dense(4, activation="tanh"))),
    "softmax": Case(
        lambda: sequential((3,), layers.Dense(4, activation="softmax"))
    ),
    "linear": Case(
        lambda: sequential((3,), layers.Dense(4, activation="linear"))
    ),
    "activation that is a layer": Case(
        lambda: sequential((3,), layers.Dense(4, activation=layers.LeakyReLU()))
    ),
    "regularized": Case(
        lambda: sequential((3,), layers.Dense(4, kernel_regularizer="l2"))
    ),
    "layer called twice": Case(used_twice),
    "layer called twice, at other lengths": Case(used_twice_at_other_lengths),
    "model inside a model": Case(model_inside_a_model),
    "frozen layer": Case(frozen_layer),
    "only the bias is trainable": Case(without_kernel),
    "two outputs": Case(two_outputs),
    "two inputs": Case(two_inputs),
    "subclassed": Case(Subclassed, shape=(3,)),
    "one layer by name": Case(three_layers, layers=["last"]),
    "two layers by name": Case(three_layers, layers=["first", "third"]),
    "one layer by path": Case(three_layers, layers=["net/block/second"]),
    "all layers inside one": Case(three_layers, layers=["block"]),
    "a layer named beside what holds it": Case(
        three_layers, layers=["block", "second"]
    ),
}
CASES = compact_in(
    CASES,
    "vectors",
    "sequences",
    "few positions, wide",
    "many positions, narrow",
    "length known only at run time",
    "layer called twice, at other lengths",
    "two inputs",
    "all layers inside one",
)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_factors_match_the_jacobian(case):
    check(case)
