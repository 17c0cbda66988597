"""A small network and its data, to be trained step by step."""

import keras
import numpy as np

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(24, 4)).astype("float32")
Y = RANDOM.integers(0, 3, 24)
QUERIES = (
    RANDOM.normal(size=(5, 4)).astype("float32"),
    RANDOM.integers(0, 3, 5),
)
LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_model(optimizer, *layers, decay=None):
    """4-6-3 with `layers` after the hidden one, always the same."""
    keras.utils.set_random_seed(1)
    layers = [layer for layer in layers if layer is not None]
    layers = [type(one).from_config(one.get_config()) for one in layers]
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(6, "tanh", kernel_regularizer=decay),
            *layers,
            keras.layers.Dense(3),
        ]
    )
    model.compile(optimizer, LOSS)
    return model


def losses(model):
    """Those of the queries, `[5]`."""
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction=None
    )
    return np.asarray(loss(QUERIES[1], model(QUERIES[0], training=False)))
