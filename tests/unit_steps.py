"""A model whose weights show the rate of each step.

The model is a row of weights that start at zero, the loss is its output, and
batch t is the t-th unit vector. So the gradient of batch t is that vector, and
under plain SGD the t-th weight moves by exactly the rate applied in batch t.
"""

import keras
import numpy as np
import tensorflow as tf

from keras_tracin.runs import TrainingRun, run_weights

BATCHES = 6
SGD = keras.optimizers.SGD


def output(y_true, y_pred):
    return keras.ops.mean(y_pred, axis=-1)


def make_model(kind="sequential", inputs=BATCHES):
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")
    if kind == "sequential":
        return keras.Sequential([keras.Input((inputs,)), dense])
    if kind == "functional":
        x = keras.Input((inputs,))
        return keras.Model(x, dense(x))
    if kind == "deferred":
        return keras.Sequential([dense])
    return Subclassed(dense)


class Subclassed(keras.Model):
    def __init__(self, dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        return self.dense(x)


class CustomStep(keras.Sequential):
    def train_step(self, data):
        x, _ = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


class At(keras.callbacks.Callback):
    """Does something at one kind of moment: `At(train_batch_end=action)`."""

    def __init__(self, **actions):
        super().__init__()
        for moment, action in actions.items():
            setattr(
                self,
                f"on_{moment}",
                lambda index, logs=None, action=action: action(self, index),
            )


class Interrupted(Exception):
    pass


def fit(model, callbacks, epochs=1, batches=BATCHES, x=None, **options):
    x = np.eye(batches, dtype="float32") if x is None else x
    model.fit(
        x,
        np.zeros([len(x), 1]),
        batch_size=1,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        callbacks=callbacks,
        **options,
    )


def weights_along(model, run):
    """The weights `[checkpoints + 1, inputs]`, the initial ones first."""
    rows = []
    with run_weights(model) as load:
        for checkpoint in [run.initial, *run]:
            load(checkpoint)
            rows.append(model.get_weights()[0].ravel())
    return np.stack(rows)


def assert_rates_were_applied(model, directory):
    """Each batch one update: w_{t+1} - w_t = -η_t g_t."""
    run = TrainingRun(directory)
    applied = -np.diff(weights_along(model, run), axis=0).ravel()
    assert applied.any()
    # The differences of float32 weights up to 0.5 are this exact.
    np.testing.assert_allclose(run.learning_rates, applied, 1e-5, atol=1e-7)
    return run


def compiled(rate=0.1, kind="sequential", optimizer=None, **options):
    model = make_model(kind)
    model.compile(optimizer or SGD(rate), output, **options)
    return model


EXPONENTIAL = keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5)
