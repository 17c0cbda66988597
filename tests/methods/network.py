"""A small network of many kinds of layer, and its gradients in float64."""

import keras
import numpy as np
import tensorflow as tf

NUM_TRAIN, NUM_TEST, CLASSES = 37, 5, 3


def build(dtype="float32", compiled=True):
    """A small network with a convolution, statistics and a shared layer."""
    keras.utils.set_random_seed(1)
    options = {"dtype": dtype}
    shared = keras.layers.Dense(6, activation="tanh", **options)
    inputs = keras.Input((6, 5, 2), dtype=dtype)
    x = keras.layers.Conv2D(4, 3, activation="relu", **options)(inputs)
    x = keras.layers.BatchNormalization(momentum=0.5, **options)(x)
    x = keras.layers.Flatten(**options)(x)
    x = keras.layers.Dense(6, **options)(x)
    x = shared(shared(x))
    x = keras.layers.Dropout(0.5, **options)(x)
    outputs = keras.layers.Dense(CLASSES, **options)(x)
    model = keras.Model(inputs, outputs)
    if compiled:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.02), loss)
    return model


def examples(count, seed):
    """Random images and labels."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 6, 5, 2)).astype("float32")
    return x, rng.integers(0, CLASSES, count)


TRAIN, TEST = examples(NUM_TRAIN, 0), examples(NUM_TEST, 1)


def gradients(checkpoint, x, y, value=None):
    """Per-example gradients `[n, p]` in float64, by `tape.jacobian`."""
    twin, source = build("float64", compiled=False), build(compiled=False)
    source.load_weights(checkpoint.path)
    twin.set_weights([w.astype("float64") for w in source.get_weights()])
    with tf.GradientTape(persistent=True) as tape:
        logits = twin(x.astype("float64"), training=False)
        if value is None:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        else:
            losses = value(tf.constant(y), logits)
    jacobian = tape.jacobian(
        losses,
        [v.value for v in twin.trainable_weights],
        experimental_use_pfor=False,
    )
    return np.hstack([np.reshape(part, (len(x), -1)) for part in jacobian])


def assert_close(scores, expected, scale, tolerance=1e-4):
    """Holds differences, relative to √(s_ii s_jj), to a tolerance."""
    assert np.max(np.abs(scores - expected) / scale) < tolerance
