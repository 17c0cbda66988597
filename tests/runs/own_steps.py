"""Models that train in a way of their own, as tutorials of Keras write them.

The classes follow keras.io: DCGAN, knowledge distillation and the variational
autoencoder, of a few units each.
"""

import keras
import numpy as np
import tensorflow as tf

layers, ops = keras.layers, keras.ops
WIDTH = 4
X = np.random.default_rng(0).normal(size=[12, WIDTH]).astype("float32")
Y = (X[:, 0] > 0).astype("int32")
BINARY = keras.losses.BinaryCrossentropy()
SPARSE = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(inputs, outputs, activation=None):
    return keras.Sequential(
        [keras.Input((inputs,)), layers.Dense(outputs, activation)]
    )


class GAN(keras.Model):
    """Two models, an optimizer each, and no `call`."""

    def __init__(self):
        super().__init__()
        self.discriminator = dense(WIDTH, 1, "sigmoid")
        self.generator = dense(2, WIDTH)

    def compile(self, d_optimizer, g_optimizer):
        super().compile()
        self.d_optimizer, self.g_optimizer = d_optimizer, g_optimizer

    def train_step(self, real):
        noise = tf.random.stateless_normal([tf.shape(real)[0], 2], [1, 2])
        images = ops.concatenate([self.generator(noise), real])
        labels = ops.concatenate(
            [ops.ones_like(real[:, :1]), ops.zeros_like(real[:, :1])]
        )
        with tf.GradientTape() as tape:
            d_loss = BINARY(labels, self.discriminator(images))
        variables = self.discriminator.trainable_weights
        self.d_optimizer.apply(tape.gradient(d_loss, variables), variables)
        with tf.GradientTape() as tape:
            fake = self.discriminator(self.generator(noise))
            g_loss = BINARY(ops.zeros_like(fake), fake)
        variables = self.generator.trainable_weights
        self.g_optimizer.apply(tape.gradient(g_loss, variables), variables)
        return {"d_loss": d_loss, "g_loss": g_loss}


class Distiller(keras.Model):
    """A student that learns from a teacher, and from the labels."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def loss_of(self, x, y):
        soft = ops.softmax(self.teacher(x, training=False) / 2.0)
        logits = self.student(x, training=True)
        of_teacher = keras.losses.categorical_crossentropy(
            soft, logits / 2.0, from_logits=True
        )
        return 0.5 * SPARSE(y, logits) + 0.5 * ops.mean(of_teacher)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.loss_of(*data)
        variables = self.student.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


class Autoencoder(keras.Model):
    """Layers that only the first train step builds, and no `call`."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = layers.Dense(2), layers.Dense(WIDTH)

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = ops.mean((self.decoder(self.encoder(x)) - x) ** 2)
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}


class Sampling(layers.Layer):
    """A draw around the mean in training, the mean itself otherwise."""

    def call(self, inputs, training=False):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=1)
        spread = ops.exp(0.5 * log_variance) * noise
        return mean + spread if training else mean


class AddsDivergence(Sampling):
    """The same, which adds the mean of the divergence as a loss."""

    def call(self, inputs, training=False):
        self.add_loss(ops.mean(divergence(*inputs)))
        return super().call(inputs, training=training)


def divergence(mean, log_variance):
    """The divergence from the unit normal distribution, `[n]`."""
    terms = 1 + log_variance - mean**2 - ops.exp(log_variance)
    return -0.5 * ops.sum(terms, axis=-1)


def make_vae(sampling, kind=keras.Model):
    """An autoencoder of a mean and a log variance, of two units each."""
    x = keras.Input((WIDTH,))
    mean, log_variance = layers.Dense(2)(x), layers.Dense(2)(x)
    decoded = layers.Dense(WIDTH)(sampling([mean, log_variance]))
    return kind(x, decoded), kind(
        x, layers.Concatenate()([decoded, mean, log_variance])
    )


def evidence(x, outputs):
    """The loss of a variational autoencoder, a value per example."""
    decoded, mean, log_variance = ops.split(outputs, [WIDTH, WIDTH + 2], axis=1)
    return ops.mean((decoded - x) ** 2, axis=1) + divergence(mean, log_variance)


class Variational(keras.Model):
    """Trains on all outputs that `evidence` is of."""

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = ops.mean(evidence(x, self(x, training=True)))
        variables = self.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        return {"loss": loss}
