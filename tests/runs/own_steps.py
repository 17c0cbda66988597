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

    def train_step(self, data):
        x, y = data
        soft = ops.softmax(self.teacher(x, training=False) / 2.0)
        with tf.GradientTape() as tape:
            logits = self.student(x, training=True)
            hard = keras.losses.categorical_crossentropy(
                soft, logits / 2.0, from_logits=True
            )
            loss = 0.5 * SPARSE(y, logits) + 0.5 * ops.mean(hard)
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
