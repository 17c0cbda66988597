"""Small networks, and their Gauss-Newton matrices as operators."""

import keras
import numpy as np
from keras import layers

from keras_tracin.curvature.objective import GaussNewton
from keras_tracin.curvature.operators import Damped
from keras_tracin.curvature.solvers import EKFAC
from keras_tracin.data.examples import open_examples
from keras_tracin.engine.steps import GradientFunctions
from keras_tracin.losses.per_example import per_example_loss
from tests.gradients.oracle import randomize, sequential

COUNT, CLASSES = 30, 3


def gauss_newton(model, loss="mse", tokens=0):
    """The operator of all variables in the order of their gradients."""
    keras.utils.set_random_seed(0)
    model.compile(loss=loss)
    randomize(model)
    rng = np.random.default_rng(0)
    shape = (COUNT, *model.input_shape[1:])
    x = rng.integers(tokens, size=shape) if tokens else rng.normal(size=shape)
    y = rng.integers(CLASSES, size=COUNT)
    if loss == "mse":
        y = rng.normal(size=(COUNT, *model.output_shape[1:]))
    examples, per_example = open_examples((x, y)), per_example_loss(model)
    functions = GradientFunctions(model, per_example, examples.first(2).data)
    flat = [variable for group in functions.variables for variable in group]
    return GaussNewton(model, per_example, examples, flat)


def softmax():
    return layers.Dense(CLASSES, activation="softmax")


CASES = {
    "dense": (lambda: sequential((4,), layers.Dense(3, "tanh"), softmax()), 0),
    "narrow convolution": (
        lambda: sequential(
            (6, 6, 1),
            layers.Conv2D(2, 3, activation="tanh"),
            layers.Flatten(),
            softmax(),
        ),
        0,
    ),
    "sequence": (
        lambda: sequential(
            (2, 6),
            layers.EinsumDense("btc,cd->btd", (None, 5), bias_axes="d"),
            layers.Activation("tanh"),
            layers.GlobalAveragePooling1D(),
            softmax(),
        ),
        0,
    ),
    "embedding and normalisation": (
        lambda: sequential(
            (3,),
            layers.Embedding(5, 4),
            layers.LayerNormalization(),
            layers.Flatten(),
            softmax(),
            dtype="int32",
        ),
        5,
    ),
}


def tied():
    """A language model whose table is its output projection too."""
    inputs = keras.Input((3,), dtype="int32")
    table = layers.ReversibleEmbedding(5, 4)
    x = layers.Dense(4, "tanh")(table(inputs))
    y = keras.ops.softmax(table(x, reverse=True))
    return keras.Model(inputs, layers.GlobalAveragePooling1D()(y))


class Scale(keras.layers.Layer):
    """A user's layer, for which there is no rule."""

    def build(self, shape):
        self.factor = self.add_weight(shape=shape[-1:], name="factor")
        self.offset = self.add_weight(shape=shape[-1:], name="offset")

    def call(self, inputs):
        return inputs * self.factor + self.offset


NETWORKS = {
    **CASES,
    "axes in another order": (
        lambda: sequential(
            (4,),
            layers.EinsumDense("ab,cbd->adc", (2, 3), bias_axes="dc"),
            layers.Flatten(),
            softmax(),
        ),
        0,
    ),
    "tied table": (tied, 5),
    "layer without a rule": (lambda: sequential((4,), Scale(), softmax()), 0),
}


def fitted(build, tokens=0, damping=0.1):
    """EK-FAC's inverse, and the gradients of nine examples as factors."""
    model = build()
    operator = gauss_newton(model, "sparse_categorical_crossentropy", tokens)
    data = operator.examples.first(9).data
    functions = GradientFunctions(model, per_example_loss(model), data)
    factors = functions.capturing.capture(data).factors
    return EKFAC().prepare(Damped(operator, damping)), factors
