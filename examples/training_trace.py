"""How well first-order estimates tell what training steps do (figure 7).

    python examples/training_trace.py --output_dir=out/training_trace

Trains a network on MNIST by plain SGD, and at every step takes the loss of a
hundred test digits before and after. Prints how the real changes and TracIn's
first-order estimates of them correlate, where the whole loss of the test digits
went, and the training digits that lowered one of their losses most; and draws
into the output directory:

- loss_changes.png: real changes beside their estimates, the paper's figure 7.

MNIST is read from `--data_dir`, where TensorFlow Datasets keeps its data sets;
by default that is `tfds` in the directory that KERAS_TRACIN_DATA names, or
TFDS's own.
"""

import os
import pathlib

import keras
import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags

import keras_tracin as kt
from keras_tracin import plots

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", "out/training_trace", "Where the trace and the picture go."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps MNIST.")
_NUM_TRAIN = flags.DEFINE_integer(
    "num_train", 6_400, "Training digits.", lower_bound=1
)
_NUM_QUERIES = flags.DEFINE_integer(
    "num_queries", 100, "Test digits that are watched.", lower_bound=1
)
_EPOCHS = flags.DEFINE_integer("epochs", 2, "Epochs.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.01, "Of SGD.")
_SEED = flags.DEFINE_integer("seed", 0, "Random seed.")


def main(_):
    output = pathlib.Path(_OUTPUT_DIR.value)
    keras.utils.set_random_seed(_SEED.value)
    train = load_mnist(f"train[:{_NUM_TRAIN.value}]")
    queries = load_mnist(f"test[:{_NUM_QUERIES.value}]")
    trace = kt.trace_training(
        build_model(),
        train,
        queries,
        epochs=_EPOCHS.value,
        seed=_SEED.value,
        directory=output / "trace",
        resume=False,
    )
    print(f"{len(trace.steps)} steps, {len(trace.query_ids)} test digits.")
    print(
        "Pearson's correlation of real and first-order change: "
        f"{trace.correlation():.4f}\n"
    )
    print_balance(trace)
    print_strongest(trace, train[1], queries[1])
    plots.loss_changes(trace).savefig(output / "loss_changes.png")
    print(f"\nThe picture and the trace are in {output}.")


def load_mnist(split):
    """Digits `[n, 784]` from 0 to 1, and their labels."""
    data_dir = _DATA_DIR.value
    if data_dir is None and "KERAS_TRACIN_DATA" in os.environ:
        data_dir = os.path.join(os.environ["KERAS_TRACIN_DATA"], "tfds")
    images, labels = tfds.load(
        "mnist",
        split=split,
        data_dir=data_dir,
        as_supervised=True,
        batch_size=-1,
    )
    x = images.numpy().reshape(-1, 784).astype("float32") / 255
    return x, labels.numpy().astype("int32")


def build_model():
    """784-256-128-10 with ReLU, compiled with plain SGD."""
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10),
        ]
    )
    model.compile(
        keras.optimizers.SGD(_LEARNING_RATE.value),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def print_balance(trace):
    """What became of the loss of the test digits, on average."""
    attributed = trace.scores.sum(axis=1).mean()
    first_order = trace.steps.first_order.sum(axis=0).mean()
    print("Mean loss of the test digits")
    print(f"  went down by                    {trace.loss_drop.mean():+.4f}")
    print(f"  attributed to training digits   {attributed:+.4f}")
    print(f"    of it first-order             {first_order:+.4f}")
    print(f"  that no digit accounts for      {trace.unattributed.mean():+.4f}")


def print_strongest(trace, train_labels, query_labels, k=5):
    """The training digits that moved the loss of a test digit most."""
    row = int(np.argmax(trace.loss_drop))
    top = trace.attribution().top_k(k)
    print(
        f"\nTest digit {query_labels[row]}, whose loss went down most "
        f"({trace.loss_drop[row]:+.3f})"
    )
    sides = {"proponents": top.proponents, "opponents": top.opponents}
    for side, ranking in sides.items():
        found = zip(ranking.ids[row], ranking.scores[row], strict=True)
        words = [f"{train_labels[i]} {score:+.3g}" for i, score in found]
        print(f"  {side:<10}  {', '.join(words)}")


if __name__ == "__main__":
    app.run(main)
