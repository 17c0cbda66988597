"""A tiny training in float64, recorded; and the same by Keras alone."""

import keras
import numpy as np
import tensorflow as tf

import keras_tracin as kt

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(30, 4)).astype("float32")
Y = RANDOM.integers(0, 3, 30)
QUERIES = (
    RANDOM.normal(size=(4, 4)).astype("float32"),
    RANDOM.integers(0, 3, 4),
)
EPOCHS, BATCH = 3, 8  # 12 steps, the last of each epoch of 6 examples


def make_model(optimizer, *layers, hidden=True, decay=1e-2, dtype="float64"):
    """4-5-3 with tanh, or 4-3, always with the same weights."""
    keras.utils.set_random_seed(1)
    options = {
        "dtype": dtype,
        "kernel_regularizer": keras.regularizers.L2(decay),
    }
    first = [keras.layers.Dense(5, "tanh", **options)] if hidden else []
    model = keras.Sequential(
        [
            keras.Input((4,)),
            *first,
            *(type(one).from_config(one.get_config()) for one in layers),
            keras.layers.Dense(3, **options),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, dtype=dtype
    )
    model.compile(optimizer, loss)
    return model


def recorded(model, directory, data=(X, Y), **options):
    """Trains the model, and the method that unrolls it."""
    settings = {"epochs": EPOCHS, "batch_size": BATCH, **options}
    kt.record_training(model, data, directory, **settings)
    return kt.UnrolledInfluence(model, data, directory)


class Retrained:
    """Training by Keras alone, with counts in the loss: the oracle.

    Args:
        make: makes the model anew.
        batches: the rows of each step.
    """

    def __init__(self, make, batches):
        self.model = make()
        self.model.optimizer.build(self.model.trainable_variables)
        self._start = [v.numpy() for v in self.model.variables]
        self._slots = [v.numpy() for v in self.model.optimizer.variables]
        self._batches = batches
        self._step = tf.function(self._make_step, reduce_retracing=True)

    def _make_step(self, x, y, counts):
        model = self.model
        with tf.GradientTape() as tape:
            logits = tf.cast(model(x, training=True), tf.float64)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
            total = tf.reduce_mean(counts * losses)
            total += tf.cast(tf.add_n(model.losses), tf.float64)
        variables = model.trainable_variables
        grads = tape.gradient(total, [v.value for v in variables])
        model.optimizer.apply(grads, variables)

    def losses(self, counts):
        """Those of the queries, `[4]`, after training."""
        model = self.model
        for v, value in zip(model.variables, self._start, strict=True):
            v.assign(value)
        slots = zip(model.optimizer.variables, self._slots, strict=True)
        for v, value in slots:
            v.assign(value)
        for rows in self._batches:
            self._step(X[rows], Y[rows], tf.constant(counts[rows]))
        logits = tf.cast(model(QUERIES[0], training=False), tf.float64)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(
            QUERIES[1], logits
        ).numpy()

    def derivative(self, direction, h=1e-5):
        """Of the queries' losses by the counts along a direction, `[4]`."""
        ones = np.ones(len(X))
        up = self.losses(ones + h * direction)
        return (up - self.losses(ones - h * direction)) / (2 * h)
