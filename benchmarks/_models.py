"""The four networks that are measured, and their data."""

import dataclasses
import pathlib
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

NUM_CLASSES = 10
VOCABULARY = 10_000
SEQUENCE = 64
WIDTH = 128
FEED_FORWARD = 512
HEADS = 4
TOKEN_EMBEDDING = "tokens"

Arrays = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Workload:
    """A network, its input, and the size of the measurement.

    Attributes:
        build: Function that builds the network, which returns logits.
        input_shape: Shape of one example, without the batch axis.
        num_queries: Number of queries to score.
        jacobian_examples: Number of examples for `tape.jacobian`.
        reads_digits: True if its input can be MNIST.
        reads_tokens: True if its input is token ids.
    """

    build: Callable[[], keras.Model]
    input_shape: tuple[int, ...]
    num_queries: int
    jacobian_examples: int
    reads_digits: bool = False
    reads_tokens: bool = False

    def compiled(self) -> keras.Model:
        """The network, compiled with plain SGD, with reproducible weights."""
        keras.utils.set_random_seed(0)
        model = self.build()
        model.compile(
            keras.optimizers.SGD(learning_rate=0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return model


def mlp() -> keras.Model:
    """784-256-128-10 with ReLU."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(256, activation="relu"),
            layers.Dense(128, activation="relu"),
            layers.Dense(NUM_CLASSES),
        ]
    )


def cnn() -> keras.Model:
    """Two convolutions, each with a pooling, and two dense layers."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(NUM_CLASSES),
        ]
    )


def resnet20() -> keras.Model:
    """ResNet-20 for 32 x 32 (He et al. 2016, sec. 4.2), option-B shortcuts."""
    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(_normalized_conv(inputs, 16, 3))
    for width, first_stride in ((16, 1), (32, 2), (64, 2)):
        for stride in (first_stride, 1, 1):
            x = _residual_block(x, width, stride)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(NUM_CLASSES)(x))


def _residual_block(x, width: int, stride: int):
    y = layers.ReLU()(_normalized_conv(x, width, 3, stride))
    y = _normalized_conv(y, width, 3)
    if stride > 1:
        x = _normalized_conv(x, width, 1, stride)
    return layers.ReLU()(layers.Add()([x, y]))


def _normalized_conv(x, width: int, kernel: int, stride: int = 1):
    x = layers.Conv2D(width, kernel, stride, padding="same", use_bias=False)(x)
    return layers.BatchNormalization()(x)


def transformer() -> keras.Model:
    """Encoder of two blocks over token ids, averaged over positions."""
    tokens = keras.Input((SEQUENCE,), dtype="int32")
    # Positions are spelled out for each example, because an input without a
    # batch axis has no gradient per example.
    places = keras.ops.cumsum(keras.ops.ones_like(tokens), axis=1) - 1
    x = layers.Add()(
        [
            layers.Embedding(VOCABULARY, WIDTH, name=TOKEN_EMBEDDING)(tokens),
            layers.Embedding(SEQUENCE, WIDTH, name="positions")(places),
        ]
    )
    for _ in range(2):
        x = _encoder_block(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(tokens, layers.Dense(NUM_CLASSES)(x))


def _encoder_block(x):
    attention = layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
    x = layers.LayerNormalization()(layers.Add()([x, attention(x, x)]))
    y = layers.Dense(FEED_FORWARD, activation="relu")(x)
    y = layers.Dense(WIDTH)(y)
    return layers.LayerNormalization()(layers.Add()([x, y]))


WORKLOADS = {
    "mlp": Workload(mlp, (784,), 500, 64, reads_digits=True),
    "cnn": Workload(cnn, (28, 28, 1), 500, 32, reads_digits=True),
    "resnet20": Workload(resnet20, (32, 32, 3), 100, 8),
    "transformer": Workload(
        transformer, (SEQUENCE,), 100, 8, reads_tokens=True
    ),
}


def mnist_in(data_dir: str) -> str | None:
    """The TFDS folder of MNIST, or None."""
    folder = pathlib.Path(data_dir, "tfds")
    return str(folder) if (folder / "mnist").is_dir() else None


def load_examples(
    workload: Workload, num_train: int, data_dir: str | None
) -> tuple[Arrays, Arrays]:
    """Training examples and queries: MNIST if available, else random."""
    if workload.reads_digits and data_dir and num_train <= 60_000:
        return (
            _digits(workload, "train", num_train, data_dir),
            _digits(workload, "test", workload.num_queries, data_dir),
        )
    return (
        random_examples(workload, num_train, seed=0),
        random_examples(workload, workload.num_queries, seed=1),
    )


def _digits(
    workload: Workload, split: str, count: int, data_dir: str
) -> Arrays:
    import tensorflow_datasets as tfds

    images, labels = tfds.load(
        "mnist",
        split=f"{split}[:{count}]",
        data_dir=data_dir,
        download=False,
        as_supervised=True,
        batch_size=-1,
    )
    x = images.numpy().astype(np.float32).reshape(-1, *workload.input_shape)
    x /= 255
    return x, labels.numpy().astype(np.int32)


def random_examples(workload: Workload, count: int, seed: int) -> Arrays:
    """Random examples of the right shape and type."""
    rng = np.random.default_rng(seed)
    y = rng.integers(NUM_CLASSES, size=count, dtype=np.int32)
    shape = (count, *workload.input_shape)
    if workload.reads_tokens:
        # Word frequencies of real text: Zipf's law in Mandelbrot's form.
        frequencies = 1 / (np.arange(VOCABULARY) + 2.7)
        frequencies /= frequencies.sum()
        x = rng.choice(VOCABULARY, size=shape, p=frequencies)
        return x.astype(np.int32), y
    return rng.random(shape, dtype=np.float32), y
