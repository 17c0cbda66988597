"""The networks that several examples train."""

import keras
from keras import layers

from examples import _common

LAST_LAYER = "logits"


def digits_mlp(*widths):
    """Dense layers over an image of MNIST, with ReLU between."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Flatten(),
            *(layers.Dense(width, activation="relu") for width in widths),
            layers.Dense(10, name=LAST_LAYER),
        ]
    )


def digits_cnn(shape=(28, 28, 1)):
    """Two convolutions and two dense layers; 57,000 weights for MNIST."""
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, 5, strides=2, activation="relu"),
            layers.Conv2D(32, 3, strides=2, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, name=LAST_LAYER),
        ]
    )


def small_resnet():
    """Three residual blocks over an image of CIFAR-10; 309,000 weights.

    Blocks as in He et al. 2016, with 1 × 1 convolutions as shortcuts. In
    training, images are flipped and shifted at random; scores use the original
    images.
    """
    inputs = keras.Input((32, 32, 3))
    x = layers.Rescaling(4.0, -1.9)(inputs)  # about mean 0 and variance 1
    x = layers.RandomFlip("horizontal")(x)
    x = layers.RandomTranslation(0.1, 0.1, fill_mode="constant")(x)
    x = layers.ReLU()(_conv_and_norm(x, 16))
    for width in (32, 64, 128):
        y = layers.ReLU()(_conv_and_norm(x, width, stride=2))
        y = _conv_and_norm(y, width)
        x = _conv_and_norm(x, width, kernel=1, stride=2)
        x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10, name=LAST_LAYER)(x))


def _conv_and_norm(x, width, kernel=3, stride=1):
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False)(x)
    # Statistics of the last 10 steps or so: an epoch has few.
    return layers.BatchNormalization(momentum=0.9)(x)


def compile_with_decay(
    network, highest, num_examples, num_epochs, strategy=None, batch_size=64
):
    """Builds and compiles a network, under a strategy if there is one.

    The optimizer is SGD with Nesterov momentum and a cosine decay to zero.
    """
    steps = num_epochs * -(-num_examples // batch_size)

    def build():
        rate = keras.optimizers.schedules.CosineDecay(highest, steps)
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True)
        return _common.compile_classifier(network(), optimizer)

    return _common.build_under(strategy, build)
