"""Flags, data and output that the examples share.

A flag that several programs have is defined by calling its function, with the
program's own default:

    _EPOCHS = _common.epochs(5)
    ...
    _EPOCHS.value
"""

import os
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import keras_tracin as kt

# A flag belongs to the program that calls its function, not to this module.
flags.disclaim_key_flags()


def output_dir(default):
    """`--output_dir`."""
    return flags.DEFINE_string(
        "output_dir", default, "Directory for runs and figures."
    )


def data_dir(what="Directory of TensorFlow Datasets"):
    """`--data_dir`."""
    return flags.DEFINE_string(
        "data_dir",
        None,
        f"{what}. Default: below the directory KERAS_TRACIN_DATA if that is "
        "set; otherwise data is downloaded.",
    )


def seed():
    """`--seed`."""
    return flags.DEFINE_integer("seed", 0, "Random seed.")


def num_train(default):
    """`--num_train`."""
    return flags.DEFINE_integer(
        "num_train",
        default,
        "Largest number of training examples.",
        lower_bound=1,
    )


def num_queries(default):
    """`--num_queries`."""
    return flags.DEFINE_integer(
        "num_queries",
        default,
        "Number of test examples to explain.",
        lower_bound=1,
    )


def epochs(default, lower_bound=1):
    """`--epochs`."""
    return flags.DEFINE_integer(
        "epochs", default, "Number of training epochs.", lower_bound=lower_bound
    )


def k(default):
    """`--k`."""
    return flags.DEFINE_integer(
        "k",
        default,
        "Number of proponents and opponents of each query.",
        lower_bound=1,
    )


def flip_share():
    """`--flip_share`."""
    return flags.DEFINE_float(
        "flip_share",
        0.1,
        "Share of the training labels to make wrong.",
        lower_bound=0.01,
        upper_bound=0.9,
    )


def strategy():
    """`--strategy`, for `create_strategy`."""
    return flags.DEFINE_enum(
        "strategy",
        "none",
        ["none", "one_device", "mirrored"],
        "Distribution strategy to train and score under. Without GPUs, "
        "mirrored uses two halves of the CPU.",
    )


def create_strategy(name):
    """The strategy of this name, or None. Call it before creating tensors."""
    if name == "none":
        return None
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("CPU:0")
    if tf.config.list_physical_devices("GPU"):
        return tf.distribute.MirroredStrategy()
    (cpu,) = tf.config.list_physical_devices("CPU")
    halves = [tf.config.LogicalDeviceConfiguration() for _ in range(2)]
    tf.config.set_logical_device_configuration(cpu, halves)
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def build_under(strategy, build):
    """Calls `build()` in the scope of the strategy."""
    if strategy is None:
        return build()
    with strategy.scope():
        return build()


def offline(*parts):
    """A path below the directory KERAS_TRACIN_DATA, or None."""
    root = os.environ.get("KERAS_TRACIN_DATA")
    return root and os.path.join(root, *parts)


def load_images(name, split, directory):
    """Loads images of a TFDS data set, and their labels.

    Args:
        name: "mnist" or "cifar10".
        split: the split, such as "train[:1000]".
        directory: directory of TFDS, or None for the default.

    Returns:
        Images, float32 `[n, height, width, channels]` from 0 to 1, and labels,
        int32 `[n]`.
    """
    import tensorflow_datasets as tfds

    images, labels = tfds.load(
        name,
        split=split,
        data_dir=directory or offline("tfds"),
        as_supervised=True,
        batch_size=-1,
    )
    return (
        images.numpy().astype("float32") / 255,
        labels.numpy().astype("int32"),
    )


def compile_classifier(model, optimizer):
    """Compiles a model, whose outputs are logits, for class indices."""
    model.compile(
        optimizer,
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def fit(model, train, directory, num_epochs):
    """Trains and records a checkpoint of each epoch; returns the run."""
    callback = kt.TracInCheckpoint(directory, overwrite=True)
    start = time.perf_counter()
    model.fit(
        *train,
        epochs=num_epochs,
        batch_size=64,
        callbacks=[callback],
        verbose=0,
    )
    passed = time.perf_counter() - start
    print(f"Trained for {num_epochs} epochs in {passed:.0f} s.", flush=True)
    return kt.TrainingRun(directory)


def predictions(model, x):
    """Predicted classes, `[n]`."""
    return model.predict(x, batch_size=512, verbose=0).argmax(axis=-1)


def accuracy(model, test):
    """Share of test examples with the right prediction."""
    return float((predictions(model, test[0]) == test[1]).mean())


def losses(model, x, y):
    """Losses of examples, `[n]`."""
    logits = model.predict(x, batch_size=512, verbose=0)
    return np.asarray(
        keras.losses.sparse_categorical_crossentropy(
            y, logits, from_logits=True
        )
    )


def print_ranking(side, ranking, row, names):
    """Prints labels and scores of one side of a query."""
    pairs = zip(ranking.ids[row], ranking.scores[row], strict=True)
    words = [f"{names[i]} {score:+.3g}" for i, score in pairs]
    print(f"  {side:<10}  {', '.join(words)}")


def print_top(top, row, names):
    """Prints the proponents and the opponents of a query."""
    print_ranking("proponents", top.proponents, row, names)
    print_ranking("opponents", top.opponents, row, names)


def save(figure, output, name):
    """Saves a figure in the output directory and prints its path."""
    path = pathlib.Path(output, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"Drew {path}", flush=True)
